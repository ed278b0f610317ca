"""Dense scores that teach a lexicon in the phases: of a head on the same towers, of a model apart, or of both.

Two heads on the same towers and the sum of their scores, which is better than either and teaches both (dense and sparse
self-distillation, CIKM 2025, arXiv 2508.16707); a frozen dense model (D2S; Nguyen et al., ECIR 2024).

B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.config import ModelConfig
from lexlip.models.dense import DenseLIP
from lexlip.models.weights import known_config, load_model
from lexlip.train.config import Config
from lexlip.train.losses import score_distillation, symmetric_contrastive
from lexlip_data.loading.batch import Batch


def self_distillation(dense: Tensor, lexicon: Tensor, weights: Sequence[float], temperature: float) -> Tensor:
    """Both heads learn from their weighted sum.

    The authors' code lets the gradient into the sum and normalises both directions together; here the sum is without
    gradient, and each direction is normalised by itself.

    Args:
        dense, lexicon: (B, B) cosines of texts, in rows, and images.
        weights: of dense and of lexicon scores.
        temperature: divides all scores.
    """
    taught = (weights[0] * dense + weights[1] * lexicon).detach()
    return score_distillation(dense, taught, temperature) + score_distillation(lexicon, taught, temperature)


def joint_losses(
    lexicon: Tensor, dense: Tensor | None, teacher: Tensor | None, config: Config, ids: Tensor | None
) -> dict[str, Tensor]:
    """Losses of a global batch's (B, B) cosines.

    Args:
        lexicon: of the lexicon.
        dense: of the head beside it, where there is one.
        teacher: of the frozen model, without gradient, where there is one.
        ids: (B,) image ids, see `in_batch_contrastive`.

    Returns:
        "dense_loss", InfoNCE of the dense head, and "distill_loss", all that is taught; whichever there are.
    """
    losses, taught = {}, []
    if dense is not None:
        losses["dense_loss"] = symmetric_contrastive(dense, config.temperature, ids)
        taught.append(self_distillation(dense, lexicon, config.joint_weights, config.temperature))
    if teacher is not None:
        taught.append(score_distillation(lexicon, teacher, config.temperature, config.teacher_temperature))
    return {**losses, "distill_loss": torch.stack(taught).sum()} if taught else losses


class Teacher:
    """A frozen dense model that sees the same images and captions; no part of the module that it teaches.

    Args:
        path: checkpoint or model folder of a `DenseLIP` with the student's vocabulary and size of images.

    Raises:
        ConfigError: it is none, or reads other tokens or images.
    """

    def __init__(self, path: str, vocab_size: int, image_size: int):
        shape = known_config(path)
        if not isinstance(shape, ModelConfig) or shape.head != "dense":
            raise ConfigError(f"teacher={path} is no dense model of two towers; train one with head=dense")
        for key, value in (("vocab_size", vocab_size), ("image_size", image_size)):
            if getattr(shape, key) != value:
                raise ConfigError(f"teacher={path} has {key}={getattr(shape, key)}, and this run {key}={value}")
        self.model = DenseLIP(shape)
        load_model(self.model, path)
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def vectors(self, batch: Batch) -> dict[str, Tensor]:
        """(B, embed_dim) normalised "teacher_text" and "teacher_image" of a batch."""
        self.model.to(batch["image"].device)
        text = self.model.vectors_text(batch["text_ids"], batch["text_mask"])
        image = self.model.vectors_image(batch["image"])
        return {"teacher_text": F.normalize(text, dim=-1), "teacher_image": F.normalize(image, dim=-1)}
