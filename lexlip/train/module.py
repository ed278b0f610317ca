"""What both phases share: a LightningModule around the exact step, with validation, optimiser and checkpoints.

A phase is a subclass. It states `encode`, what can be computed of some rows alone, and `batch_losses`, what needs the
vectors of the whole batch; docs/ARCHITECTURE.md walks through one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.encoders import ImageEncoder, TextEncoder
from lexlip.models.lexlip import LexLIP
from lexlip.models.two_tower import TwoTowers
from lexlip.models.weights import fit_phase, phase_state
from lexlip.train.agreement import Agreement
from lexlip.train.batch_norm import average_statistics, restore_statistics, statistics_kept, statistics_of
from lexlip.train.build import as_trained, decided_by, started_model
from lexlip.train.callbacks.terms import TermCounts
from lexlip.train.checkpoint import tokenizer_files
from lexlip.train.config import Config, base
from lexlip.train.evaluation import EvaluatedModule
from lexlip.train.guard import StepGuard
from lexlip.train.idle import refuse_idle_keys
from lexlip.train.losses import in_batch_contrastive, with_gradient
from lexlip.train.optim import make_optimizer, make_schedule
from lexlip.train.skipped import SkippedSamples
from lexlip.train.sparsity import Sparsity
from lexlip.train.step import Tensors, cached_backward, split_batch, total
from lexlip.utils.distributed import gather_many, gather_objects, gather_rows, rank, sum_over_ranks, world_size
from lexlip_data.loading.batch import Batch

log = logging.getLogger(__name__)


class RetrievalModule(EvaluatedModule):
    """Base of both phases; takes a model into which the weights of `load_path` are loaded already."""

    name: ClassVar[str]  # of the phase, in checkpoints and model folders
    model_class: ClassVar[type[TwoTowers]] = LexLIP
    # For every loss of the phase, the entry of `loss_names` that weighs it.
    loss_groups: ClassVar[Mapping[str, str]] = {"contrastive_loss": "contrastive", "flops_loss": "contrastive"}

    def __init__(self, config: Config, model: TwoTowers):
        super().__init__()
        self.save_hyperparameters({"config": config.as_dict(), "model": dataclasses.asdict(model.config)})
        self.automatic_optimization = False
        self.config, self.model = config, model
        if config.lock_image:
            model.image_encoder.requires_grad_(False)
        if config.drop_path_rate and isinstance(model, TwoTowers):  # with 0 a tower keeps what its own `vit_kwargs` say
            model.image_encoder.set_drop_path(config.drop_path_rate)
        if config.gradient_checkpointing:
            model.image_encoder.backbone.set_grad_checkpointing(True)
            model.text_encoder.bert.gradient_checkpointing_enable()
        self.run_dir: Path | None = None  # where the run writes; None: nowhere
        self.skipped = SkippedSamples(config.max_bad_share)
        self.agreement, self.guard = Agreement(), StepGuard(config.max_nonfinite_steps)
        self.batches_seen = self.loaded_step = 0
        self.validated_step = -1
        self.sparsity = Sparsity(config)
        self.noted: Tensors = {}  # further numbers of a step to log, of this process's part of the batch
        self.term_counts: TermCounts | None = None  # where a callback wants the vectors of every step

    # --- a phase's own ---

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse what this phase cannot do.

        Raises:
            ConfigError: naming the key, its value and what would do.
        """
        refuse_idle_keys(config)
        if not config.test_only and not cls.trained_groups(config):
            raise ConfigError(
                f"training_mode={config.training_mode} with loss_names={config.loss_names} trains nothing: all losses "
                "of that mode weigh 0"
            )

    @classmethod
    def trained_groups(cls, config: Config) -> set[str]:
        """The entries of `loss_names` that weigh a loss of this phase."""
        return {group for group in cls.loss_groups.values() if config.loss_names.get(group)}

    @classmethod
    def ignored_weights(cls, config: Config) -> dict[str, float]:
        """What `loss_names` gives to losses of another phase, other than 0 and the default."""
        usual, own = base()["loss_names"], set(cls.loss_groups.values())
        others = {name: weight for name, weight in config.loss_names.items() if name not in own}
        return {name: weight for name, weight in others.items() if weight not in (0, usual[name])}

    @classmethod
    def all_used(cls, config: Config) -> bool:
        """Whether every trained parameter gets a gradient in every step."""
        return True

    @classmethod
    def masks_needed(cls, config: Config) -> bool:
        """Whether the phase's batches need masked captions."""
        return False

    @classmethod
    def decided_by_state(cls, state: Mapping[str, Tensor]) -> dict:
        """Keys that follow from the phase's own saved parts, or its defaults without any."""
        return {}

    def prepare(self, batch: Batch) -> tuple[Batch, Any]:
        """Once per step, before the batch is split: the batch to encode, and what else the step's losses need."""
        return batch, None

    def encode(self, batch: Batch, context: Any, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        """What can be computed of these rows alone.

        Args:
            batch: rows of a prepared batch; `context` is what `prepare` gave with it.
            vectors_only: leave the losses out.

        Returns:
            Vectors for `batch_losses` by name, (rows, V) each, and the losses that need no other row, already divided
            by the global batch's counts.
        """
        raise NotImplementedError

    def batch_losses(self, vectors: Tensors, batch: Batch, context: Any) -> Tensors:
        """Losses by name of the vectors of this process's whole batch."""
        raise NotImplementedError

    def before_first_step(self, batch: Batch) -> None:
        """Before the very first step of a run, with its whole batch of this process."""

    def after_step(self, batch: Batch, context: Any) -> None:
        """After the optimiser has moved the weights."""

    def vectors_of(self, kind: str, batch: Batch) -> Tensor:
        """(B, V) vectors of a batch of one "image" or "text" for evaluation, not normalised."""
        if kind == "image":
            return self.model.vectors_image(batch["image"])
        return self.model.vectors_text(batch["text_ids"], batch["text_mask"])

    # --- making one ---

    @classmethod
    def from_model(cls, folder: str | Path, *, trust_sources: bool = False, **overrides) -> RetrievalModule:
        """A phase around a model folder and the phase's own parts in it, without a Trainer, in evaluation mode.

        Args:
            folder: written by `lexlip import-official`, `lexlip export` or `save_pretrained`.
            trust_sources: as `LexLIP.from_pretrained`.
            overrides: any keys of configs/base.yaml.

        Raises:
            CheckpointError: the folder holds no model, or parts that do not fit.
        """
        folder = Path(folder)
        drop_rate = overrides.get("drop_rate")
        model = cls.model_class.from_pretrained(folder, drop_rate=drop_rate, trust_sources=trust_sources)
        if not isinstance(model, TwoTowers):
            raise CheckpointError(
                f"{folder} holds heads on frozen towers; train them on a cache: features=CACHE load_path={folder}"
            )
        state = phase_state(folder, cls.name)
        try:
            by_state = cls.decided_by_state(state)
        except (KeyError, IndexError) as error:
            raise CheckpointError(f"{folder}: {cls.name.lower()}.safetensors holds no parts of {cls.name}") from error
        values = {**base(), **decided_by(model), **by_state, "num_gpus": 0, **overrides}
        for given, other in (("batch_size", "per_gpu_batchsize"), ("per_gpu_batchsize", "batch_size")):
            if given in overrides and other not in overrides:
                values[other] = values[given]
        module = cls(Config.checked(values), model)
        if state:
            fit_phase(module, state, folder)
        return module.eval()

    @classmethod
    def from_config(cls, config: Config, tokenizer=None) -> RetrievalModule:
        """Build model and phase; `load_path` is loaded before the phase copies anything from the model."""
        asked, config = config, as_trained(config)
        if config != asked and config.load_path:
            cls.check_config(config)
        model = started_model(cls.model_class, config, tokenizer)
        module = cls(config, model)
        if config.load_path and not config.test_only and (state := phase_state(config.load_path, cls.name)):
            fit_phase(module, state, config.load_path, strict=False)
        return module

    # --- pieces for the phases ---

    def long_vectors(self, batch: Batch) -> Tensors:
        """{"long": (B, features, V) normalised vectors of the pairs' long texts}; {} for batches without any."""
        if "long_ids" not in batch:
            return {}
        ids, mask = batch["long_ids"], batch["long_mask"]
        vectors = self.model.vectors_long(ids.flatten(0, 1), mask.flatten(0, 1))  # (B * K, 1 + C, V)
        return {"long": F.normalize(vectors, dim=-1).unflatten(0, ids.shape[:2]).flatten(1, 2)}

    def contrastive(self, vectors: Tensors, batch: Batch, temperature: float | Tensor) -> Tensor:
        """InfoNCE of each text feature of a pair with its image, averaged over the features (LoTLIP, sec. 3.4).

        `vectors` are "text" and "image" (B, V), and "long" (B, features, V) where pairs have long texts.
        """
        rows = batch.get("rows_of_ranks")
        long = vectors["long"].unbind(1) if "long" in vectors else ()
        image, *texts = gather_many([vectors["image"], vectors["text"], *long], rows)
        ids = gather_rows(batch["image_id"], rows) if self.config.mask_same_image else None
        loss = total(in_batch_contrastive(text, image, temperature, ids) for text in texts) / len(texts)
        return with_gradient(loss, self.config.contrastive_gradient)

    # --- the step ---

    def compute_losses(self, batch: Batch) -> Tensors:
        """All weighted losses of one batch, encoded at once, by name; their sum is what is trained."""
        batch, context = self.prepare(batch)
        vectors, losses = self._encode(batch, context, False)
        return {**losses, **self._batch_losses(vectors, batch, context)}

    def training_step(self, batch: Batch, batch_index: int) -> None:
        self.batches_seen += 1
        rows = self._agree(batch)
        if min(rows) == 0:
            log.warning("step left out: a process had no image left in its batch")
            return
        if self.step_now == 0:
            self.before_first_step(batch)
        self.seed_step()
        optimizer, statistics = self.optimizers(), statistics_of(self)
        assert not isinstance(optimizer, list)  # `configure_optimizers` makes one
        optimizer.zero_grad(set_to_none=True)
        step = self.step_now
        batch, context = self.prepare({**batch, "rows_of_ranks": rows})
        losses = cached_backward(
            lambda part, vectors_only: self._encode(part, context, vectors_only),
            lambda vectors: self._counted_losses(vectors, batch, context),
            list(split_batch(batch, self.config.rows_at_once)),
            self._backward,
        )
        losses = _mean_over_ranks(losses)
        self.guard.begin(losses)
        scale = self._loss_scale()
        optimizer.step()  # asks `on_before_optimizer_step`
        if not self.guard.finite:
            restore_statistics(statistics)
            self.guard.left_out(
                self.global_step, self.batches_seen, batch.get("sample", ()), self.run_dir, self._save_aside
            )
        elif self._loss_scale() < scale:  # a scaler that just shrank has left the step out
            restore_statistics(statistics)
            self.guard.overflow(self._loss_scale())
        else:
            self.guard.passed()
            self.schedule.step()
            average_statistics(self)
            self.after_step(batch, context)
            self.sparsity.after_step(step)
        self._log_losses("train", losses, len(batch["image_id"]))
        self.log("train/learning_rate", self.schedule.get_last_lr()[0])
        if moved := self.sparsity.moved_weights(step):
            self.log_dict({f"train/{name}": value for name, value in moved.items()})
        if self.noted:
            self.log_dict({f"train/{name}": value for name, value in _mean_over_ranks(self.noted).items()})
            self.noted = {}

    def _agree(self, batch: Batch) -> list[int]:
        """The one exchange before a step; gives the rows of every process."""
        lines = list(batch.get("skipped", ()))
        rows, skipped = self.agreement.reach(len(batch["image_id"]), len(lines), self.device)
        if skipped:
            data = self._data
            epoch = (self.batches_seen - 1) // max(1, data.steps_per_epoch)
            everyone = [line for lines in gather_objects(lines) for line in lines]
            self.skipped.add(everyone, epoch, data.n_pairs, self.run_dir)
        self.log("train/skipped_samples", float(self.skipped.total))
        return rows

    def _encode(self, batch: Batch, context: Any, vectors_only: bool) -> tuple[Tensors, Tensors]:
        # A micro-batch is encoded twice; the second time moves the running statistics.
        with statistics_kept(self) if vectors_only else nullcontext():
            vectors, losses = self.encode(batch, context, vectors_only)
        return vectors, self._weighed(losses)

    def _counted_losses(self, vectors: Tensors, batch: Batch, context: Any) -> Tensors:
        if self.term_counts is not None:
            self.term_counts.add(vectors)
        return self._batch_losses(vectors, batch, context)

    def _batch_losses(self, vectors: Tensors, batch: Batch, context: Any) -> Tensors:
        with torch.autocast(self.device.type, enabled=False):  # scores are divided by 0.05: 16 bits are too coarse
            return self._weighed(self.batch_losses(vectors, batch, context))

    def _weighed(self, losses: Tensors) -> Tensors:
        """Multiplied by `loss_names`; losses of weight 0 are left out."""
        if nameless := losses.keys() - self.loss_groups.keys():
            raise KeyError(f"loss_groups of {self.name} does not say what weighs {sorted(nameless)}")
        weights = {name: self.config.loss_names.get(self.loss_groups[name], 0) for name in losses}
        return {name: value * weights[name] for name, value in losses.items() if weights[name]}

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Processes average their gradients once per step, after the last micro-batch."""
        averaging: AbstractContextManager = nullcontext()
        if not last and world_size() > 1 and isinstance(self.trainer.strategy.model, DistributedDataParallel):
            averaging = self.trainer.strategy.model.no_sync()
        # Each gradient in the precision of its forward pass.
        with averaging, torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are unscaled, whatever the precision.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip_grad or float("inf"))
        self.log("train/grad_norm", norm)
        if not self.guard.inspect(norm, scaled=self._scaler is not None):
            optimizer.zero_grad(set_to_none=True)  # so the step that follows changes nothing

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None)

    def _loss_scale(self) -> float:
        return self._scaler.get_scale() if self._scaler is not None else 1.0

    def _save_aside(self, path: Path) -> Exception | None:
        self.trainer.save_checkpoint(path, weights_only=False)
        return getattr(self.trainer.strategy.checkpoint_io, "error", None)

    @property
    def step_now(self) -> int:
        """Optimiser steps done, also before the Trainer has taken up a checkpoint's count."""
        return max(self.global_step, self.loaded_step)

    @property
    def step_in_training(self) -> int | None:
        """`step_now`; None in validation."""
        return self.step_now if self.training else None

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run; 0 without a Trainer that knows."""
        return int(getattr(self.trainer, "estimated_stepping_batches", 0))

    def seed_step(self) -> None:
        """Make dropout a function of (seed, batch, process): the same after resuming, different between processes."""
        stream = np.random.SeedSequence([self.config.seed, self.batches_seen, rank()])
        torch.manual_seed(int(stream.generate_state(1)[0]))

    # --- the course of a training ---

    def train(self, mode: bool = True) -> RetrievalModule:
        super().train(mode)
        if self.config.lock_image:
            self.model.image_encoder.eval()  # statistics of batch norms are weights too
        return self

    def on_fit_start(self) -> None:
        self.skipped.list_rows(self._data.left_out(), self.run_dir)
        if self.config.compile:
            for tower in self.modules():
                if isinstance(tower, (ImageEncoder, TextEncoder)):  # the momentum encoder's too
                    tower.compile()

    def on_train_epoch_start(self) -> None:
        """Where in the data the run is follows from the batches seen, so a resumed run takes the very next one."""
        sampler = self._data.train_sampler
        epoch, step = divmod(self.batches_seen, len(sampler))
        sampler.set_epoch(epoch)
        sampler.set_start(step)

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)
        self.sparsity.begin(steps)
        optimizer = make_optimizer(self, self.config)
        self.schedule = make_schedule(optimizer, self.config, steps)
        return [optimizer], [{"scheduler": self.schedule, "interval": "step"}]

    def on_save_checkpoint(self, content: dict) -> None:
        content["phase"] = self.name
        content["batches_seen"] = self.batches_seen
        content["skipped"] = self.skipped.state()
        content["sparsity"] = self.sparsity.state()
        content["tokenizer"] = tokenizer_files(self.model.tokenizer)

    def on_load_checkpoint(self, content: dict) -> None:
        self.batches_seen, self.loaded_step = content["batches_seen"], content["global_step"]
        self.skipped.load(content.get("skipped", self.skipped.state()))
        self.sparsity.load(content.get("sparsity", {}))
        self.on_train_epoch_start()  # before the first epoch's loader is asked for its batches
        saved = content.get("hyper_parameters", {}).get("config", {})
        for key in ("batch_size", "seed", "datasets"):
            now = getattr(self.config, key)
            if saved and saved.get(key) != now:
                log.warning("resuming with %s=%s; the checkpoint was written with %s", key, now, saved[key])

    def on_validation_epoch_end(self) -> None:
        self.validated_step = self.step_now
        super().on_validation_epoch_end()


def _mean_over_ranks(losses: Tensors) -> Tensors:
    """The losses of the global batch: what gradient averaging makes of each process's own."""
    names = sorted(losses)  # processes with other numbers of micro-batches list them in another order
    values = torch.stack([losses[name].detach().float() for name in names])
    return dict(zip(names, sum_over_ranks(values) / world_size(), strict=True))
