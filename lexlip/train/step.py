"""The exact training step of both phases: one loss over the whole global batch, however it is split.

A batch larger than one pass (`grad_cache_chunk`) is split and gradient-cached (Gao et al., 2021): all passes are
encoded without graph, the global losses are taken over all vectors, then each pass is encoded again with graph and
receives its share of the gradient. Loss and gradient are those of one large pass; the price is the second encoding,
about a third more time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lexlip.errors import TrainingError
from lexlip.train.batch_norm import average_statistics, restore_statistics, statistics_kept, statistics_of
from lexlip.train.diagnostics import SkippedSamples, report_not_finite
from lexlip.utils.distributed import gather_objects, gather_rows, rank, sum_over_ranks, world_size

log = logging.getLogger(__name__)

PART_OF = {  # each loss's part of `loss_names`
    "contrastive_loss": "contrastive",
    "flops_loss": "contrastive",
    "self_t_mlm_loss": "self_t",
    "i2t_mlm_loss": "i2t",
    "t2t_mlm_loss": "t2t",
}
MOST_OVERFLOWS = 20  # in a row; a loss scale of 65,536 has then fallen below 1


class ExactStep(pl.LightningModule):
    """What a step does with a phase's `encode` and `global_losses`.

    Args:
        keys: every key of configs/base.yaml, checked.
    """

    def __init__(self, keys: dict):
        super().__init__()
        self.keys = keys
        self.automatic_optimization = False
        self.rows_per_pass = keys["grad_cache_chunk"] or keys["per_gpu_batchsize"]
        self.folder: Path | None = None  # of the run, where there is one to write to
        self.skipped = SkippedSamples(keys["max_bad_share"])
        self.not_finite = 0  # steps in a row
        self.overflowed = 0  # steps in a row that a loss scaler left out
        self.batches_seen = 0
        self.loaded_step = 0
        # What this process would like to do after the step, and what all agreed on before it.
        self.wishes = {"stop": False, "save": False}
        self.agreed = dict(self.wishes)
        self._finite, self._total, self._norm = True, torch.zeros(()), torch.zeros(())  # of the step under way

    # --- a phase's own ---

    def prepare(self, batch: dict) -> dict:
        """Once per step, before it is split: what the passes need to agree on."""
        return batch

    def encode(self, batch: dict, vectors_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One pass.

        Args:
            batch: rows of a prepared batch.
            vectors_only: leave the losses out.

        Returns:
            Vectors for `global_losses` by name, (rows, V) each, and the losses that need no other row, already
            divided by the global batch's counts.
        """
        raise NotImplementedError

    def global_losses(self, vectors: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Losses over the vectors of this process's whole batch."""
        raise NotImplementedError

    def after_step(self, batch: dict) -> None:
        """After the optimiser has moved the weights."""

    # --- the step ---

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply by `loss_names`; parts of weight 0 are left out."""
        weights = {name: self.keys["loss_names"].get(PART_OF[name], 0) for name in losses}
        return {name: value * weights[name] for name, value in losses.items() if weights[name]}

    def compute_losses(self, batch: dict) -> dict[str, Tensor]:
        """All weighted parts of the loss of one batch in one pass, by name; their sum is what is trained."""
        batch = self.prepare(batch)
        vectors, losses = self.encode(batch)
        return self.weigh({**losses, **self._global_losses(vectors, batch)})

    def _global_losses(self, vectors: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):  # scores are divided by 0.05: 16 bits are too coarse
            return self.global_losses(vectors, batch)

    def training_step(self, batch: dict, batch_index: int) -> None:
        self.batches_seen += 1
        if not self._agree(batch):
            log.warning("step left out: a process had no picture left in its batch")
            return
        self.seed_step()
        optimizer = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        statistics = statistics_of(self)
        batch = self.prepare(batch)
        rows = len(batch["image_id"])
        if rows <= self.rows_per_pass:
            vectors, losses = self.encode(batch)
            losses = self.weigh({**losses, **self._global_losses(vectors, batch)})
            self._backward(sum(losses.values()))
        else:
            losses = self._cached_backward(batch)
        losses = self._mean_over_ranks(losses)
        self._total = sum(losses.values())
        before = self._loss_scale()
        optimizer.step()
        if not self._finite:
            restore_statistics(statistics)
            self._left_out(losses, batch)
        elif self._loss_scale() < before:  # a scaler that just shrank has left the step out
            restore_statistics(statistics)
            self._overflow()
        else:
            self.not_finite = self.overflowed = 0
            self.lr_schedulers().step()
            average_statistics(self)
            self.after_step(batch)
        self._log_losses("train", losses, rows)

    def _agree(self, batch: dict) -> bool:
        """The one exchange before a step; False if a process has no row to train on."""
        lines = list(batch.get("skipped", ()))
        own = [len(batch["image_id"]), self.wishes["stop"], self.wishes["save"], len(lines)]
        one_row = torch.tensor([own], device=self.device, dtype=torch.int64)
        rows, stop, save, skipped = zip(*gather_rows(one_row, [1] * world_size()).tolist(), strict=True)
        self.agreed = {"stop": any(stop), "save": any(save)}
        batch["rows_of_ranks"] = rows
        if any(skipped):
            data = self.trainer.datamodule
            epoch = (self.batches_seen - 1) // max(1, data.steps_per_epoch)
            everyone = [line for lines in gather_objects(lines) for line in lines]
            self.skipped.add(everyone, epoch, data.n_pairs, self.folder, first=rank() == 0)
        self.log("train/skipped_samples", float(self.skipped.total))
        return min(rows) > 0

    def _mean_over_ranks(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the global batch: what gradient averaging makes of each process's own."""
        names = sorted(losses)  # processes with other numbers of passes list them in another order
        values = torch.stack([losses[name].detach().float() for name in names])
        return dict(zip(names, sum_over_ranks(values) / world_size(), strict=True))

    def _overflow(self) -> None:
        self.overflowed += 1
        if self.overflowed >= MOST_OVERFLOWS:
            raise TrainingError(
                f"the gradient overflowed in {self.overflowed} steps in a row, although the loss scale fell to "
                f"{self._loss_scale():.3g}: it is NaN or infinite by itself, and no such step changed the weights. "
                "Lower learning_rate, or use precision=bf16 or 32, and go on from the last checkpoint"
            )

    def _left_out(self, losses: dict[str, Tensor], batch: dict) -> None:
        """Write down a step that was not finite; refuse to go on after `max_nonfinite_steps` in a row."""
        self.not_finite += 1
        samples = gather_objects([list(sample) for sample in batch.get("sample", ())])
        values = {name: float(value) for name, value in losses.items()}
        folder, step = self.folder if rank() == 0 else None, self.global_step
        path = None
        if rank() == 0:
            path = report_not_finite(folder, step, self.batches_seen, values, float(self._norm), samples)
        if self.not_finite < self.keys["max_nonfinite_steps"]:
            return
        kept = ""
        if self.folder is not None:
            self.trainer.save_checkpoint(self.folder / f"not_finite_{self.batches_seen:08d}.ckpt", weights_only=False)
            failed = getattr(self.trainer.strategy.checkpoint_io, "error", None)
            kept = f"; {path or self.folder} lists the batch's samples" + (
                f" (the state could not be saved: {failed})" if failed else ", the .ckpt beside it holds the state"
            )
        raise TrainingError(
            f"loss or gradient was not finite in {self.not_finite} steps in a row (max_nonfinite_steps), the last one "
            f"is {step}; no such step changed the weights{kept}. Lower learning_rate, or use precision=bf16 or 32, and "
            "go on from the last checkpoint"
        )

    @property
    def step_now(self) -> int:
        """Optimiser steps done, also before the Trainer has taken up a checkpoint's count."""
        return max(self.global_step, self.loaded_step)

    def seed_step(self) -> None:
        """Make dropout a function of (seed, batch, process): the same after resuming, different between processes."""
        stream = np.random.SeedSequence([self.keys["seed"], self.batches_seen, rank()])
        torch.manual_seed(int(stream.generate_state(1)[0]))

    def _cached_backward(self, batch: dict) -> dict[str, Tensor]:
        passes = list(split_batch(batch, self.rows_per_pass))
        states, parts = [], []
        with torch.no_grad(), statistics_kept(self):  # the second encoding moves them
            for part in passes:
                states.append(_random_state(self.device))
                parts.append(self.encode(part, vectors_only=True)[0])
        torch.clear_autocast_cache()  # 16-bit copies of weights made without graph would give these no gradient
        cached = {name: torch.cat([part[name] for part in parts]).detach().requires_grad_() for name in parts[0]}
        losses = self.weigh(self._global_losses(cached, batch))
        gradients = {}
        if losses:
            with torch.autocast(self.device.type, enabled=False):
                torch.autograd.backward(sum(losses.values()))
            gradients = {name: value.grad for name, value in cached.items() if value.grad is not None}
        start = 0
        for part, state in zip(passes, states, strict=True):
            after = _random_state(self.device)
            _set_random_state(state, self.device)  # the same dropout as in the first encoding
            vectors, local = self.encode(part)
            if part is not passes[-1]:
                _set_random_state(after, self.device)
            stop = start + len(part["image_id"])
            local = self.weigh(local)
            total = sum((vectors[name] * grad[start:stop]).sum() for name, grad in gradients.items())
            with self._gradients_averaged(part is passes[-1]):
                self._backward(total + sum(local.values()))
            for name, value in local.items():
                losses[name] = losses.get(name, 0) + value.detach()
            start = stop
        return losses

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None)

    def _loss_scale(self) -> float:
        return self._scaler.get_scale() if self._scaler is not None else 1.0

    def _backward(self, loss: Tensor) -> None:
        with torch.autocast(self.device.type, enabled=False):  # each gradient in the precision of its forward pass
            self.manual_backward(loss)

    def _gradients_averaged(self, now: bool) -> AbstractContextManager:
        """Processes average their gradients once per step, after the last pass."""
        if now or world_size() == 1 or not isinstance(self.trainer.strategy.model, DistributedDataParallel):
            return nullcontext()
        return self.trainer.strategy.model.no_sync()

    def on_before_optimizer_step(self, optimizer) -> None:
        # Here gradients are unscaled, whatever the precision.
        self._norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.keys["clip_grad"] or float("inf"))
        self.log("train/grad_norm", self._norm)
        # With a scaler, a gradient that overflows is its daily work; without, it would ruin the weights.
        watched = self._total if self._scaler is not None else self._total + self._norm
        self._finite = bool(torch.isfinite(watched))
        if not self._finite:
            optimizer.zero_grad(set_to_none=True)  # so the step that follows changes nothing

    def _log_losses(self, stage: str, losses: dict[str, Tensor], rows: int) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        total = sum(values.values())
        self.log_dict(values, batch_size=rows, sync_dist=stage != "train", add_dataloader_idx=False)
        self.log(
            f"{stage}/loss", total, prog_bar=True, batch_size=rows, sync_dist=stage != "train",
            add_dataloader_idx=False,
        )  # fmt: skip
        if stage == "train":
            self.log("train/learning_rate", self.lr_schedulers().get_last_lr()[0])


def split_batch(batch: dict, rows: int) -> Iterator[dict]:
    """Consecutive parts of at most so many rows; what has no rows goes along whole."""
    total = len(batch["image_id"])
    for start in range(0, total, rows):
        yield {
            name: value[start : start + rows] if isinstance(value, Tensor) and value.ndim else value
            for name, value in batch.items()
        }


def global_count(labels: Tensor) -> Tensor:
    """Masked positions of the global batch, per process: what `losses.masked_lm` divides by."""
    count = sum_over_ranks((labels != -100).sum().float())
    return (count / world_size()).clamp(min=1.0)


def _random_state(device: torch.device) -> tuple:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
