"""What a cache asks of towers; those of `lexlip.models.towers` have it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor


class TextFeatures(NamedTuple):
    """Captions as word pieces of the lexicon, without special tokens.

    `terms` (B, T) int64, 0 at padding; `mask` (B, T) bool; `states` (B, T, D); `pooled` (B, P).
    """

    terms: Tensor
    mask: Tensor
    states: Tensor
    pooled: Tensor


class ImageTower(Protocol):
    def preprocess(self, image: Image.Image) -> Tensor: ...  # (3, H, W)
    def features(self, pixels: Tensor) -> Tensor: ...  # (B, 3, H, W) -> (B, L, D)
    def facts(self) -> dict: ...


class TextTower(Protocol):
    lexicon: Any  # the tokenizer whose word pieces are the terms

    def features(self, texts: Sequence[str]) -> Any: ...  # TextFeatures
    def facts(self) -> dict: ...


def device_of(tower: object) -> torch.device:
    """Where a tower computes: where its weights are."""
    parameters = tower.parameters() if isinstance(tower, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
