"""What both phases share as a LightningModule: the exact step, validation recall, optimiser, logging.

A phase gives `encode` (the parts of a batch that can be computed alone) and `global_losses` (what needs the vectors
of the whole batch). A batch larger than one pass (`grad_cache_chunk`) is split and gradient-cached (Gao et al.,
2021): all passes are encoded without graph, the global losses are taken over all vectors, then each pass is encoded
again with graph and receives its share of the gradient. Loss and gradient are those of one large pass; the price is
the second encoding, about a third more time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lexlip import checkpoint, config, recall
from lexlip.distributed import gather_many, gather_objects, gather_rows, rank, sum_over_ranks, world_size
from lexlip.encoders import ImageEncoder, TextEncoder
from lexlip.faults import SkippedSamples, TrainingError, report_not_finite
from lexlip.files import write_json
from lexlip.folders import check_head
from lexlip.lexicon import saturate
from lexlip.losses import in_batch_contrastive, ramp
from lexlip.model import LexLIP
from lexlip.model_config import known_config
from lexlip.optim import in_steps, make_optimizer, make_schedule
from lexlip.text_tables import fit_text_tables
from lexlip.towers import TwoTowers

log = logging.getLogger(__name__)

MOST_OVERFLOWS = 20  # in a row; a loss scale of 65,536 has then fallen below 1


class RetrievalModule(pl.LightningModule):
    """Base of both phases.

    Args:
        keys: every key of configs/base.yaml, checked.
        model: the towers and heads; weights of `load_path` already loaded.

    Attributes:
        model_class: the model that is trained.
    """

    model_class: type[TwoTowers] = LexLIP

    def __init__(self, keys: dict, model: TwoTowers):
        super().__init__()
        self.keys = keys
        self.save_hyperparameters({"config": keys, "model": dataclasses.asdict(model.config)})
        self.model = model
        self.automatic_optimization = False
        if keys["lock_image"]:
            model.image_encoder.requires_grad_(False)
        if keys["gradient_checkpointing"]:
            model.image_encoder.set_gradient_checkpointing(True)
            model.text_encoder.set_gradient_checkpointing(True)
        self.test_metrics: dict[str, dict] = {}
        self.rows_per_pass = keys["grad_cache_chunk"] or keys["per_gpu_batchsize"]
        self.folder: Path | None = None  # of the run, where there is one to write to
        self.skipped = SkippedSamples(keys["max_bad_share"])
        self.not_finite = 0  # steps in a row
        self.overflowed = 0  # steps in a row that a loss scaler left out
        self.validation_due = False  # after the step that a checkpoint is of
        self.loaded_step = 0
        self.validated_step = -1
        self.batches_seen = 0
        self.flops_warmup = 0  # steps, known once a Trainer says how many there are in all
        # What this process would like to do after the step, and what all agreed on before it.
        self.wishes = {"stop": False, "save": False}
        self.agreed = dict(self.wishes)
        self._finite, self._total, self._norm = True, torch.zeros(()), torch.zeros(())  # of the step under way
        self._collected: dict[tuple[str, str], list[recall.SparseVectors]] = {}

    @classmethod
    def check_keys(cls, keys: dict) -> None:
        """Refuse what this phase cannot do; raises `lexlip.config.ConfigError`."""

    @classmethod
    def all_used(cls, keys: dict) -> bool:
        """Whether every trained parameter gets a gradient in every step."""
        return True

    @classmethod
    def masks_needed(cls, keys: dict) -> bool:
        """Whether the phase's batches need masked captions."""
        return False

    @classmethod
    def from_model(cls, folder: str | Path, **overrides) -> RetrievalModule:
        """A phase around a model folder, without a Trainer, in evaluation mode.

        The phase's own parts (weakened decoder; twins and rings) are loaded where the folder holds them.

        Args:
            folder: written by `lexlip import-official`, `lexlip export` or `save_pretrained`.
            overrides: any keys of configs/base.yaml.

        Raises:
            CheckpointError: the folder holds no model, or parts that do not fit.
        """
        folder = Path(folder)
        model = cls.model_class.from_pretrained(folder, drop_rate=overrides.get("drop_rate"))
        state = checkpoint.phase_state(folder, cls.__name__)
        keys = {**config.base(), **model.keys(), **cls.keys_of_state(state), "num_gpus": 0, **overrides}
        for given, other in (("batch_size", "per_gpu_batchsize"), ("per_gpu_batchsize", "batch_size")):
            if given in overrides and other not in overrides:
                keys[other] = keys[given]
        keys = config.check(keys)
        module = cls(keys, model)
        if state:
            checkpoint.fit_phase(module, state, folder)
        return module.eval()

    @classmethod
    def keys_of_state(cls, state: dict[str, Tensor]) -> dict:
        """Keys that follow from the phase's own saved parts, or its defaults without any."""
        return {}

    @classmethod
    def from_keys(cls, keys: dict, tokenizer=None) -> RetrievalModule:
        """Build model and phase; `load_path` is loaded before the phase copies anything from the model."""
        source = keys["load_path"] or keys["resume_from"]
        # Read before the towers are built: a wrong file is refused before anything is fetched.
        weights = checkpoint.model_weights(source) if source else None
        known = known_config(source) if source else None
        if known is not None:
            check_head(cls.model_class, known, source)
        model = cls.model_class.from_keys(keys, tokenizer, known)
        if keys["load_path"]:
            # What was trained on such lengths already must not be cut back to `trained_positions`.
            long_enough = known is not None and known.max_text_len >= keys["max_text_len"]
            trained = None if long_enough else keys["trained_positions"]
            fit_text_tables(weights, model.state_dict(), keys["max_text_len"], trained)
            checkpoint.fit(model, weights, keys["load_path"])
        del weights
        module = cls(keys, model)
        state = checkpoint.phase_state(keys["load_path"], cls.__name__) if keys["load_path"] else {}
        if state and not keys["test_only"]:
            checkpoint.fit_phase(module, state, keys["load_path"], strict=False)
        return module

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

    # --- pieces for the phases ---

    def retrieval_vectors(self, pooled: Tensor) -> Tensor:
        """(B, V) pooled logits to normalised vectors r."""
        return F.normalize(saturate(pooled), dim=-1)

    def long_vectors(self, batch: dict) -> dict[str, Tensor]:
        """{"long": (B, features, V) normalised vectors of the pairs' long texts}; {} for batches without any."""
        if "long_ids" not in batch:
            return {}
        ids, mask = batch["long_ids"], batch["long_mask"]
        vectors = self.model.vectors_long(ids.flatten(0, 1), mask.flatten(0, 1))  # (B * K, 1 + C, V)
        return {"long": F.normalize(vectors, dim=-1).unflatten(0, ids.shape[:2]).flatten(1, 2)}

    def contrastive(self, vectors: dict[str, Tensor], batch: dict, temperature: float | Tensor) -> Tensor:
        """InfoNCE of each text feature of a pair with its picture, averaged over the features (LoTLIP, sec. 3.4).

        Args:
            vectors: "text" and "image" (B, V), and "long" (B, features, V) where pairs have long texts.
        """
        rows = batch.get("rows_of_ranks")
        long = vectors["long"].unbind(1) if "long" in vectors else ()
        image, *texts = gather_many([vectors["image"], vectors["text"], *long], rows)
        ids = gather_rows(batch["image_id"], rows) if self.keys["mask_same_image"] else None
        return sum(in_batch_contrastive(text, image, temperature, ids) for text in texts) / len(texts)

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply by `loss_names`; parts of weight 0 are left out. FLOPS belongs to the contrastive part."""
        weights = self.keys["loss_names"]
        weighted = {}
        for name, value in losses.items():
            weight = weights.get(name.removesuffix("_loss").removesuffix("_mlm").replace("flops", "contrastive"), 0)
            if weight:
                weighted[name] = value * weight
        return weighted

    def flops_weight(self) -> float:
        """Weight of FLOPS at this step, see `lexlip.losses.ramp`."""
        return self.keys["flops_weight"] * ramp(self.step_now, self.flops_warmup)

    # --- the step ---

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
            self._left_out(losses, batch)
        elif self._loss_scale() < before:  # a scaler that just shrank has left the step out
            self._overflow()
        else:
            self.not_finite = self.overflowed = 0
            self.lr_schedulers().step()
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
        with torch.no_grad():
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

    def train(self, mode: bool = True) -> RetrievalModule:
        super().train(mode)
        if self.keys["lock_image"]:
            self.model.image_encoder.eval()  # statistics of batch norms are weights too
        return self

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

    def on_fit_start(self) -> None:
        if self.folder is not None and rank() == 0:
            self.skipped.list_rows(self.trainer.datamodule.left_out(), self.folder)
        if self.keys["compile"]:
            for tower in self.modules():
                if isinstance(tower, (ImageEncoder, TextEncoder)):  # the twins' too
                    tower.compile()

    def on_train_epoch_start(self) -> None:
        self._find_place()

    def _find_place(self) -> None:
        """The place in the data follows from the batches seen, so a resumed run goes on with the very next one."""
        sampler = self.trainer.datamodule.train_sampler
        epoch, step = divmod(self.batches_seen, len(sampler))
        sampler.set_epoch(epoch)
        sampler.set_start(step)

    # --- validation and test ---

    def _evaluation_step(self, stage: str, batch: dict, loader: int) -> None:
        name, kind = self.trainer.datamodule.eval_names(stage)[loader]
        if kind == "pairs":
            self._log_losses(stage, self.compute_losses(batch), len(batch["image_id"]))
            return
        if kind == "image":
            vectors = self.model.vectors_image(batch["image"])
        else:
            vectors = self.model.vectors_text(batch["text_ids"], batch["text_mask"])
        rows = recall.SparseVectors.from_dense(F.normalize(vectors, dim=-1), batch["image_id"], batch["order"])
        self._collected.setdefault((name, kind), []).append(rows)

    def _evaluation_metrics(self) -> dict[str, dict]:
        """Metrics per data set; every process computes the same."""
        if self.trainer.fast_dev_run:  # a few batches of pictures and captions need not belong together
            self._collected.clear()
        sets: dict[str, dict[str, recall.SparseVectors]] = {}
        for (name, kind), parts in sorted(self._collected.items()):
            sets.setdefault(name, {})[kind] = recall.SparseVectors.concatenate(parts).gathered()
        self._collected.clear()
        cuts = (self.keys["eval_top_k"], self.keys["eval_folds"]) if self.trainer.testing else ([], 0)
        return {name: recall.evaluate(kinds["image"], kinds["text"], *cuts) for name, kinds in sets.items()}

    def validation_step(self, batch: dict, batch_index: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step("val", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.validated_step = self.step_now
        metrics = self._evaluation_metrics()
        if not metrics:
            return
        for name, row in metrics.items():
            for side in ("t2i", "i2t"):
                for key, value in row[side].items():
                    self.log(f"val/{name}/{side}_{key}", value)
            for side, value in row["active_terms"].items():
                self.log(f"val/{name}/active_terms_{side}", value)
        self.log("val/rsum", sum(row["rsum"] for row in metrics.values()) / len(metrics), prog_bar=True)

    def test_step(self, batch: dict, batch_index: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step("test", batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.test_metrics = self._evaluation_metrics()
        if self.trainer.is_global_zero:
            print(recall.table(self.test_metrics))
            if self.keys["metrics_file"]:
                write_json(self.test_metrics, self.keys["metrics_file"])

    # --- optimiser and checkpoints ---

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)
        self.flops_warmup = in_steps(self.keys["flops_warmup"], steps)
        optimizer = make_optimizer(self, self.keys)
        schedule = make_schedule(optimizer, self.keys, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, content: dict) -> None:
        content["batches_seen"] = self.batches_seen
        content["skipped"] = self.skipped.state()
        content["validation_due"] = self.validation_due
        content["tokenizer"] = checkpoint.tokenizer_files(self.model.tokenizer)

    def on_load_checkpoint(self, content: dict) -> None:
        self.batches_seen = content["batches_seen"]
        self.validation_due, self.loaded_step = content.get("validation_due", False), content["global_step"]
        self.skipped.load(content.get("skipped", self.skipped.state()))
        self._find_place()  # before the first epoch's loader is asked for its batches
        saved = content.get("hyper_parameters", {}).get("config", {})
        for key in ("batch_size", "seed", "datasets"):
            if saved and saved.get(key) != self.keys[key]:
                log.warning("resuming with %s=%s; the checkpoint was written with %s", key, self.keys[key], saved[key])


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
