"""What both phases share as a LightningModule around the exact step: weights and keys, validation recall, optimiser.

A phase gives `encode` (the parts of a batch that can be computed alone) and `global_losses` (what needs the vectors
of the whole batch).
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from lexlip.evaluate import recall
from lexlip.models.config import known_config
from lexlip.models.encoders import ImageEncoder, TextEncoder
from lexlip.models.hub import check_head
from lexlip.models.lexicon_head import keep_heaviest
from lexlip.models.lexlip import LexLIP
from lexlip.models.phase_state import fit_phase, phase_state
from lexlip.models.text_tables import fit_text_tables
from lexlip.models.two_tower import TwoTowers
from lexlip.models.weights import fit, model_weights
from lexlip.ops.max_logits import saturate
from lexlip.train import config
from lexlip.train.checkpoint import tokenizer_files
from lexlip.train.losses import in_batch_contrastive, ramp
from lexlip.train.optim import in_steps, make_optimizer, make_schedule
from lexlip.train.step import ExactStep
from lexlip.utils.distributed import gather_many, gather_rows, rank
from lexlip.utils.files import write_json

log = logging.getLogger(__name__)


class RetrievalModule(ExactStep):
    """Base of both phases.

    Args:
        keys: every key of configs/base.yaml, checked.
        model: the towers and heads; weights of `load_path` already loaded.

    Attributes:
        model_class: the model that is trained.
    """

    model_class: type[TwoTowers] = LexLIP

    def __init__(self, keys: dict, model: TwoTowers):
        super().__init__(keys)
        self.save_hyperparameters({"config": keys, "model": dataclasses.asdict(model.config)})
        self.model = model
        if keys["lock_image"]:
            model.image_encoder.requires_grad_(False)
        if keys["gradient_checkpointing"]:
            model.image_encoder.set_gradient_checkpointing(True)
            model.text_encoder.set_gradient_checkpointing(True)
        self.test_metrics: dict[str, dict] = {}
        self.validation_due = False  # after the step that a checkpoint is of
        self.validated_step = -1
        self.flops_warmup = 0  # steps, known once a Trainer says how many there are in all
        self._collected: dict[tuple[str, str], list[recall.SparseVectors]] = {}

    @classmethod
    def check_keys(cls, keys: dict) -> None:
        """Refuse what this phase cannot do; raises `lexlip.train.config.ConfigError`."""

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
        state = phase_state(folder, cls.__name__)
        keys = {**config.base(), **model.keys(), **cls.keys_of_state(state), "num_gpus": 0, **overrides}
        for given, other in (("batch_size", "per_gpu_batchsize"), ("per_gpu_batchsize", "batch_size")):
            if given in overrides and other not in overrides:
                keys[other] = keys[given]
        keys = config.check(keys)
        module = cls(keys, model)
        if state:
            fit_phase(module, state, folder)
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
        weights = model_weights(source) if source else None
        known = known_config(source) if source else None
        if known is not None:
            check_head(cls.model_class, known, source)
        model = cls.model_class.from_keys(keys, tokenizer, known)
        if keys["load_path"]:
            # What was trained on such lengths already must not be cut back to `trained_positions`.
            long_enough = known is not None and known.max_text_len >= keys["max_text_len"]
            trained = None if long_enough else keys["trained_positions"]
            fit_text_tables(weights, model.state_dict(), keys["max_text_len"], trained)
            fit(model, weights, keys["load_path"])
        del weights
        module = cls(keys, model)
        state = phase_state(keys["load_path"], cls.__name__) if keys["load_path"] else {}
        if state and not keys["test_only"]:
            fit_phase(module, state, keys["load_path"], strict=False)
        return module

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

    def with_cuts(self, whole: Tensor, vectors: dict[str, Tensor], batch: dict) -> Tensor:
        """Mean of a contrastive loss and, for each k of `train_top_k`, of that in the batch of vectors cut to k terms.

        So the heaviest terms alone learn to find the pair, as vectors that are cut for an index must (after Matryoshka
        representations, Kusupati et al., 2022, whose prefixes are heaviest terms here).
        """
        losses = [whole]
        for k in self.keys["train_top_k"]:
            cut = {name: keep_heaviest(vector, k) for name, vector in vectors.items()}
            losses.append(self.contrastive(cut, batch, self.keys["temperature"]))
        return sum(losses) / len(losses)

    def flops_weight(self) -> float:
        """Weight of FLOPS at this step, see `ramp`; in validation the whole, so that losses compare."""
        share = ramp(self.step_now, self.flops_warmup) if self.training else 1.0
        return self.keys["flops_weight"] * share

    def train(self, mode: bool = True) -> RetrievalModule:
        super().train(mode)
        if self.keys["lock_image"]:
            self.model.image_encoder.eval()  # statistics of batch norms are weights too
        return self

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
        content["tokenizer"] = tokenizer_files(self.model.tokenizer)

    def on_load_checkpoint(self, content: dict) -> None:
        self.batches_seen = content["batches_seen"]
        self.validation_due, self.loaded_step = content.get("validation_due", False), content["global_step"]
        self.skipped.load(content.get("skipped", self.skipped.state()))
        self._find_place()  # before the first epoch's loader is asked for its batches
        saved = content.get("hyper_parameters", {}).get("config", {})
        for key in ("batch_size", "seed", "datasets"):
            if saved and saved.get(key) != self.keys[key]:
                log.warning("resuming with %s=%s; the checkpoint was written with %s", key, self.keys[key], saved[key])
