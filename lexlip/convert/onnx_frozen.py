"""The two sides of a model on frozen towers as the ONNX exporter can follow them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from lexlip.models.frozen.heads import LexiconHeads, TextBatch
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.towers.hf_texts import HFTexts

log = logging.getLogger(__name__)


class FrozenImageSide(nn.Module):
    """Tower and head: (B, 3, H, W) pixels to (B, V) weights, not normalised."""

    def __init__(self, model: FrozenLexLIP):
        super().__init__()
        self.tower, self.heads = model.image_tower, _heads(model)

    def forward(self, pixels: Tensor) -> Tensor:
        weights = self.heads.encode_image(self.tower.features(pixels))
        return _of_all(weights, self.heads)


class FrozenTextSide(nn.Module):
    """Table, or tower and heads: (B, T) ids and their mask to (B, V) weights, not normalised.

    A table reads the word pieces alone; a tower reads [CLS] and [SEP] too.
    """

    def __init__(self, model: FrozenLexLIP):
        super().__init__()
        self.heads, config = _heads(model), model.config
        self.tower: Any = model.text_tower if model.needs_text_tower else None
        places = self.heads.positions(torch.arange(config.vocab_size))
        self.register_buffer("places", places, persistent=False)
        assert model.tokenizer is not None
        special = torch.zeros(config.vocab_size, dtype=torch.bool)
        special[model.tokenizer.all_special_ids] = True
        self.register_buffer("special", special, persistent=False)
        self.places: Tensor
        self.special: Tensor

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        real = mask.bool()
        texts = TextBatch(ids, real)
        if self.tower is not None:
            backbone = self.tower.backbone
            states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
            texts = TextBatch(ids, real & ~self.special[ids], states, backbone.recipe(states, real))
        own, expansion = self.heads.text_side(texts, self.places[ids], self.heads)
        return _of_all(own if expansion is None else own + expansion, self.heads)


def text_side(model: FrozenLexLIP) -> FrozenTextSide | None:
    """The text side; None, with a word on why, where it reads other tokens than the lexicon's."""
    if model.needs_text_tower:
        tower: Any = model.text_tower
        backbone = tower.backbone
        if not (tower.same and isinstance(backbone, HFTexts) and not backbone.pooled):
            log.warning("text.onnx is not written: the text tower reads other tokens than the lexicon's word pieces")
            return None
    return FrozenTextSide(model)


def _heads(model: FrozenLexLIP) -> LexiconHeads:
    assert model.lexicon_heads is not None
    model.lexicon_heads.method = "textbook"  # the exporter cannot follow the fused one
    return model.lexicon_heads


def _of_all(weights: Tensor, heads: LexiconHeads) -> Tensor:
    """As `LexiconHeads.scattered`, out of operations that the exporter knows."""
    rows = weights.new_zeros(weights.shape[0], heads.config.vocab_size)  # len() would be a constant
    return rows.scatter(1, heads.term_ids.expand(weights.shape[0], -1), weights.float())
