"""A whole training step of either phase, base-size towers: ours against the reference's.

    python benchmarks/step.py --json step.json
    python benchmarks/step.py --device cuda --batch 100 --phases 1 --largest 80

A step is losses, gradients, clipping, AdamW and, in Phase 2, momentum encoder and queues; data loading is
benchmarks/data.py's. Weights are random, captions have COCO's lengths: ours are padded to the longest of the batch, the
reference's to 40. Both paths compute the same loss and the same gradients, which is checked without dropout. The
roofline line gives the fraction of the machine's matrix-product rate that the step's own products reach.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import checkout
import harness
import operations
import reference
import torch
from batches import random_batch
from harness import PATHS, Options, Subject
from torch import Tensor

from lexlip.train.config import Config, base, named
from lexlip.train.module import RetrievalModule
from lexlip.train.optim import make_optimizer, parameter_groups
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

NAMED = {1: "task_Text_MAE_Contrastive_train", 2: "task_contrastive_train"}
TOWERS = {
    "base": {},
    "tiny": {
        "vit": "beit_base_patch16_224", "patch_size": 8, "input_image_embed_size": 16, "vocab_size": 60,
        "vit_kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5},
        "text_layers": 2, "input_text_embed_size": 16, "hidden_size": 16, "num_heads": 2,
    },
}  # fmt: skip
PADDED = 40
VOCABULARY = 30522  # of BERT
# Two tokens whose logits for a term differ by less than rounding may win in one path each, and the term's gradient then
# goes to another token: hardly ever in 32 bits, in 16 for some of the terms. With towers of 4 and 12 layers in bfloat16
# the gradients differ by up to 0.04 between the paths, 0.07 from float32; half of one side's gradient is 0.3.
BOUNDS = {
    "float32": {"loss": 1e-4, "gradient": 1e-3},
    "bfloat16": {"loss": 1e-2, "gradient": 0.1},
    "float16": {"loss": 1e-2, "gradient": 0.1},
}


def make_config(phase: int, options: Options) -> Config:
    """A run's config, with fresh towers."""
    sizes = options.more
    values = {**base(), **named()[NAMED[phase]], **TOWERS[sizes["towers"]]}
    values.update(
        vit_pretrained=False, text_pretrained=False, vocab_size=values["vocab_size"] or VOCABULARY,
        batch_size=sizes["batch"], per_gpu_batchsize=sizes["batch"],
        image_size=sizes["image_size"], queue_size=max(sizes["queue"], sizes["batch"]), num_gpus=int(options.cuda),
        precision={"float32": 32, "bfloat16": "bf16", "float16": 16}[options.dtype],
        gradient_checkpointing=sizes["checkpointing"],
    )  # fmt: skip
    return Config.checked(values)


def make_batch(config: Config, length: int | None, device: str) -> dict:
    """Random pairs with captions of COCO's lengths, padded to `length` or to the longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = (14 + 3 * torch.randn(config.batch_size, generator=generator)).round().long().clamp(8, PADDED)
    length = length or int(lengths.max())
    batch = random_batch(config, lengths, generator)
    batch |= {name: value[:, :length].contiguous() for name, value in batch.items() if value.shape[1:] == (PADDED,)}
    return {name: value.to(device) for name, value in batch.items()}


class Step:
    """One phase's module with its batch, and the two ways to train it.

    Args:
        paths: the ways that will be used; what only the others need (batch, queues) is not held.

    Attributes:
        module: shared by both ways, so that both fit into the memory of a small machine.
    """

    def __init__(self, phase: int, options: Options, paths: Sequence[str] = PATHS):
        torch.manual_seed(0)
        self.phase, self.options, self.config = phase, options, make_config(phase, options)
        kind = {1: Phase1Module, 2: Phase2Module}[phase]
        self.module: RetrievalModule = kind.from_config(self.config).to(options.device).train()
        if options.more["compile"]:
            self.module.model.image_encoder.compile()
            self.module.model.text_encoder.compile()
        self.queues: list[reference.Queue] = []
        if phase == 2:
            self._fill_queues(paths)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        lengths = {"fast": None, "textbook": PADDED}
        self.batches = {which: make_batch(self.config, lengths[which], options.device) for which in paths}

    def _fill_queues(self, paths: Sequence[str]) -> None:
        for queue in self.module.queues.values():
            for part in queue.keys.split(512):  # uniform numbers of norm about one
                part.copy_(torch.rand(part.shape, device=part.device) * (3 / queue.keys.shape[1]) ** 0.5)
            queue.filled.fill_(queue.size)
            queue.ids.fill_(-1)  # nobody's
            if "textbook" in paths:
                self.queues.append(reference.Queue(queue.keys.T.float()))
            if "fast" not in paths:
                queue.keys = queue.keys.new_empty(0, queue.keys.shape[1])

    @property
    def trained(self) -> list[Tensor]:
        """All trained parameters."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def optimizer(self, which: str) -> torch.optim.Optimizer:
        """Ours, or AdamW one tensor at a time; on the CPU both have one state, to spare its memory."""
        if which not in self.optimizers:
            if which == "fast":
                self.optimizers[which] = make_optimizer(self.module, self.config)
            else:
                groups = parameter_groups(self.module, self.config.weight_decay)
                betas = tuple(self.config.adam_betas)
                plain = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=betas, foreach=False)
                if not self.options.cuda and "fast" in self.optimizers:
                    plain.state = self.optimizers["fast"].state
                self.optimizers[which] = plain
        return self.optimizers[which]

    def losses(self, which: str) -> dict[str, Tensor]:
        """The parts of the loss; what the end of the step needs is kept in `self.kept`."""
        batch, options = self.batches[which], self.options
        with torch.autocast(options.device, options.torch_dtype, enabled=options.dtype != "float32"):
            if which == "fast":
                self.kept = self.module.prepare(batch)
                vectors, losses = self.module._encode(*self.kept, False)
                return {**losses, **self.module._batch_losses(vectors, *self.kept)}
            with reference.written_out(self.module):
                if self.phase == 1:
                    return reference.phase1_losses(self.module, batch)
                losses, *self.kept = reference.phase2_losses(self.module, batch, *self.queues)
                return losses

    def run(self, which: str) -> list[Tensor]:
        """One training step; gives the loss."""
        loss = sum(self.losses(which).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip_grad)
        optimizer = self.optimizer(which)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.phase == 2:
            if which == "fast":
                self.module.after_step(*self.kept)
            else:
                reference.move_momentum_encoder(self.module.twin.module, self.module.model, self.config.momentum)
                for queue, keys in zip(self.queues, self.kept, strict=True):
                    queue.push(keys)
        self.kept = None
        return [loss.detach()]

    def differences(self) -> tuple[float, float]:
        """Of the two losses, and of the two gradients as one vector of all weights; relative, without dropout."""
        self.module.eval()
        (fast_loss, fast), (loss, plain) = (self._gradients(which) for which in PATHS)
        self.module.train()
        distance = norm = 0.0
        for one, two in zip(fast, plain, strict=True):
            distance += float(torch.linalg.vector_norm(one - two, dtype=torch.float64)) ** 2
            norm += float(torch.linalg.vector_norm(two, dtype=torch.float64)) ** 2
        return abs(fast_loss - loss) / abs(loss), (distance / norm) ** 0.5

    def _gradients(self, which: str) -> tuple[float, list[Tensor]]:
        """Loss and gradients of all trained parameters, which keep none; 0 where there is no gradient."""
        loss = sum(self.losses(which).values())
        loss.backward()
        self.kept = None
        gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in self.trained]
        self.module.zero_grad(set_to_none=True)
        return float(loss.detach()), gradients


class Build:
    """One phase; both paths share one module."""

    def __init__(self, phase: int):
        self.phase = phase
        self.step: Step | None = None

    def __call__(self, which: str, options: Options) -> Subject:
        self.step = self.step or Step(self.phase, options)
        step, gradients = self.step, sum(parameter.nbytes for parameter in self.step.trained)
        return Subject(lambda: step.run(which), kept=gradients)


def largest_batch(phase: int, which: str, options: Options, gigabytes: float) -> int:
    """The largest batch, to a sixteenth, whose step fits into so much memory of the GPU; 0: none does."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))
    fits, tried = 0, 64
    above: int | None = None
    try:
        while tried >= 8 and (above is None or above - fits > max(8, fits // 16)):
            if _fits(phase, which, options, tried):
                fits, tried = tried, 2 * tried if above is None else (tried + above) // 2
            else:
                above, tried = tried, (fits + tried) // 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return fits


def _fits(phase: int, which: str, options: Options, batch: int) -> bool:
    sizes = {**options.more, "batch": batch}
    try:
        step = Step(phase, Options(**{**vars(options), "more": sizes}), [which])
        for _ in range(2):  # the second one with the optimiser's state
            step.run(which)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = None
        _free(options)


def _free(options: Options) -> None:
    gc.collect()
    if options.cuda:
        torch.cuda.empty_cache()


def measure(phase: int, options: Options) -> Config:
    """One phase's row."""
    build, sizes = Build(phase), options.more
    build("fast", options)
    loss_difference, gradient_difference = build.step.differences()
    _free(options)
    count = operations.products(lambda: build.step.run("fast"))
    name = f"step, phase {phase}, batch {sizes['batch']}, {sizes['image_size']} px"
    row = harness.compare(name + (", compiled" if sizes["compile"] else ""), build, options)
    rate = harness.product_rate(options)
    row |= {f"{which}_pairs_per_second": sizes["batch"] / row[which] for which in PATHS}
    row |= {"batch": sizes["batch"], "image_size": sizes["image_size"], "queue": sizes["queue"]}
    row |= {"loss_difference": loss_difference, "gradient_difference": gradient_difference, "operations": count}
    bounds = BOUNDS[options.dtype]
    row["agrees"] = loss_difference < bounds["loss"] and gradient_difference < bounds["gradient"]
    row |= {"product_rate": rate, "ratio_of_product_rate": count / row["fast"] / rate}
    row["notes"] = [
        f"{row['fast_pairs_per_second']:.1f} pairs/s, loss differs by {loss_difference:.0e}, "
        f"gradient by {gradient_difference:.0e}"
    ]
    print(
        f"roofline: {name}: {count / 1e12:.2f} TFLOP of products in {row['fast']:.3f} s is "
        f"{count / row['fast'] / 1e12:.2f} TFLOP/s, {row['ratio_of_product_rate']:.0%} of the "
        f"{rate / 1e12:.2f} TFLOP/s that a large {options.dtype} product reaches here",
        flush=True,
    )
    return row


def add_largest(rows: list[dict], phase: int, options: Options) -> None:
    """Both paths' largest batch into the last row; what is known is written first, as a search may be cut off."""
    row = rows[-1]
    row["largest_batch_memory"] = options.more["largest"]
    for which in PATHS:
        harness.write(rows, options)
        row[f"{which}_largest_batch"] = largest_batch(phase, which, options, options.more["largest"])
    harness.write(rows, options)
    row["notes"].append("largest batch {fast_largest_batch} and {textbook_largest_batch}".format(**row))


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--phases", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--queue", type=int, default=11520)
    parser.add_argument("--towers", choices=list(TOWERS), default="base")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in both paths")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both paths' towers")
    parser.add_argument(
        "--largest", type=float, metavar="GB", help="also the largest batch of both paths in so much GPU memory"
    )
    options = harness.options(parser, arguments)
    if options.more["largest"] and not options.cuda:
        parser.error("--largest needs a GPU")
    rows = []
    for phase in options.more["phases"]:
        rows.append(measure(phase, options))
        _free(options)
        if options.more["largest"]:
            add_largest(rows, phase, options)
    harness.report(rows, options)
    return rows


if __name__ == "__main__":
    checkout.run(main)
