"""What every frozen tower shares: evaluation mode whatever its owner does, no gradients, a hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FrozenTower(nn.Module):
    """A module that stays in evaluation mode and takes no gradient.

    Attributes:
        weights_hash: of the weights as they were loaded, before any change of their type.
    """

    weights_hash: str

    def freeze(self) -> None:
        """Called once, when all parts are there."""
        self.requires_grad_(False)
        self.eval()
        self.weights_hash = hash_weights(self.state_dict())

    def train(self, mode: bool = True):
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the types, shapes and bytes of a state dict, in an order of their own.

    Names are left out: transformers calls the same weights otherwise from one version to the next.
    """
    parts = []
    for value in state.values():
        value = value.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        parts.append(digest.hexdigest())
    return hash_text(" ".join(sorted(parts)))


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
