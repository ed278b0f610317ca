"""Training of heads on the cached features of frozen towers: the lexicon's, and the dense reference's.

`features=FOLDER` starts it from either command line: batches are then rows of a cache, and no tower is loaded. A step
takes as many different images as the batch is large, each with one of its captions.

B pairs, A terms that may be active.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lexlip.errors import ConfigError
from lexlip.features.store import FeatureStore
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.weights import known_config, load_model
from lexlip.train.config import WORD_KEYS, Config, base
from lexlip.train.dense import LearnedTemperature
from lexlip.train.frozen_start import OWN, new_heads
from lexlip.train.grounding import drawn_expansion
from lexlip.train.losses import cut_scores, score_distillation, symmetric_contrastive
from lexlip.train.sparsity import SIDES
from lexlip.train.step import Tensors, total
from lexlip.utils.distributed import gather_many, gather_rows
from lexlip_data.loading.batch import Batch


class _FrozenModule(LearnedTemperature):
    """What both have in common: features in, a learned temperature."""

    model_class = FrozenLexLIP  # type: ignore[assignment]  # which has no towers of its own
    model: FrozenLexLIP  # type: ignore[assignment]

    @classmethod
    def check_config(cls, config: Config) -> None:
        if config.training_mode != "con":
            raise ConfigError(
                f"training_mode={config.training_mode}: heads on frozen towers are contrastive; add "
                "task_frozen_lexicon_train, or set training_mode=con"
            )
        for key in ("long_captions", "DR", "lock_image", "gradient_checkpointing", "compile", *WORD_KEYS):
            if getattr(config, key):
                raise ConfigError(f"{key}={getattr(config, key)} belongs to training with images; leave it out here")
        for key, value in (("head_text", "in_context"), ("expansion_control", "terms")):
            if getattr(config, key) == value:
                raise ConfigError(f"{key}={value} belongs to training with images; leave it out here")
        super().check_config(config)

    @classmethod
    def from_config(cls, config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> _FrozenModule:
        """Heads for the cache that `features` names; `load_path` is loaded, and `teacher` comes along."""
        store = FeatureStore(config.features)
        known = known_config(config.load_path) if config.load_path else None
        if isinstance(known, FrozenConfig) and config.activation == base()["activation"]:
            config = config.changed(activation=known.activation)  # which no weight shows
        model = new_heads(config, store)
        if config.load_path:
            load_model(model, config.load_path)
        return cls(config, model)  # type: ignore[arg-type]

    @property
    def scale(self) -> torch.nn.Parameter:
        heads = self.model.dense_heads if self.config.head == "dense" else self.model.lexicon_heads
        assert heads is not None
        return heads.logit_scale

    def vectors_of(self, kind: str, batch: Batch) -> Tensor:
        return self.model.vectors_of_features(kind, batch, self.config.head)


class FrozenDenseModule(_FrozenModule):
    """The dense reference: symmetric InfoNCE with a learned temperature (CLIP, Radford et al., 2021)."""

    name = "FrozenDense"

    def encode(self, batch: Batch, context: None, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        text, image = (F.normalize(self.vectors_of(kind, batch), dim=-1) for kind in ("text", "image"))
        return {"text": text, "image": image, "scale": self.scale.expand(len(text))}, {}


class FrozenModule(_FrozenModule):
    """The lexicon: InfoNCE and the teacher's scores, of whole vectors and of cut ones, and FLOPS."""

    name = "Frozen"
    loss_groups = {"contrastive_loss": "contrastive", "distill_loss": "distill", "flops_loss": "contrastive"}

    def __init__(self, config: Config, model: Any):  # a FrozenLexLIP
        super().__init__(config, model)
        self.train(self.training)  # Lightning leaves modules as they are

    def train(self, mode: bool = True) -> FrozenModule:
        super().train(mode)
        if self.model.dense_heads is not None:
            self.model.dense_heads.eval()  # it teaches, from whole features
        return self

    @property
    def term_ids(self) -> Tensor:
        assert self.model.lexicon_heads is not None
        return self.model.lexicon_heads.term_ids

    def prepare(self, batch: Batch) -> tuple[Batch, None]:
        """Choose which captions may be expanded in this step (after Nguyen et al., ECIR 2024).

        At first few of them may, so that their own words learn to find the image; in the end all may.
        """
        if not self.training:
            return batch, None
        return {**batch, "expanded": drawn_expansion(self.config, batch, self.step_now, self.total_steps)[:, 0]}, None

    def encode(self, batch: Batch, context: None, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        heads = self.model.lexicon_heads
        assert heads is not None
        text = heads.encode_text(self.model.text_batch(batch), batch.get("expanded"))
        vectors = {"text": text, "image": heads.encode_image(batch["image"])}
        if self.config.teacher == OWN:
            vectors["teacher_text"], vectors["teacher_image"] = batch["text_pooled"], batch["image"][:, 0]
        elif self.model.dense_heads is not None:
            with torch.no_grad():
                for kind in ("text", "image"):
                    vectors[f"teacher_{kind}"] = self.model.vectors_of_features(kind, batch, "dense")
        vectors = {name: F.normalize(value.float(), dim=-1) for name, value in vectors.items()}
        return {**vectors, "scale": self.scale.expand(len(text))}, {}

    def batch_losses(self, vectors: Tensors, batch: Batch, context: None) -> Tensors:
        rows = batch.get("rows_of_ranks")
        sides = ["text", "image"] + (["teacher_text", "teacher_image"] if "teacher_text" in vectors else [])
        text, image, *teacher = gather_many([vectors[side] for side in sides], rows)
        ids = gather_rows(batch["image_id"], rows) if self.config.mask_same_image else None
        taught = (teacher[0] @ teacher[1].T).detach() if teacher else None
        contrastive, distilled = [], []
        for k in (None, *self.sparsity.cuts(self.step_in_training)):
            scores = text @ image.T if k is None else cut_scores(text, image, k)
            contrastive.append(symmetric_contrastive(scores, self.temperature(vectors), ids))
            if taught is not None:
                distilled.append(
                    score_distillation(scores, taught, self.config.temperature, self.config.teacher_temperature)
                )
        losses = {
            "contrastive_loss": total(contrastive) / len(contrastive),
            "flops_loss": self.sparsity.loss({side: [vectors[side]] for side in SIDES}, self.step_in_training),
        }
        return {**losses, "distill_loss": total(distilled) / len(distilled)} if distilled else losses
