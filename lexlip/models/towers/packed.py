"""Weights in 16 or 8 bits for towers that travel inside a model folder.

In 8 bits each output channel of a matrix or convolution, and each row of a table, has a scale of its own, kept beside
it as NAME.scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["full", "half", "int8"]
SCALE = ".scale"
LARGEST = 127


def packed(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The weights as they are stored."""
    if storage == "full":
        return {name: value.contiguous() for name, value in state.items()}
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if storage == "int8" and value.is_floating_point() and value.ndim > 1:
            rows = value.flatten(1)
            scale = (rows.float().abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
            whole = (rows / scale.float()[:, None]).round().clamp(-LARGEST, LARGEST)
            stored[name], stored[name + SCALE] = whole.to(torch.int8).view(value.shape).contiguous(), scale
        else:
            stored[name] = value.half().contiguous() if value.is_floating_point() else value.contiguous()
    return stored


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` was given, to the precision that was stored: float32 where it was 16 or 8 bits."""
    state = {}
    for name, value in stored.items():
        scaled = stored.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
        if scaled is not None and scaled.dtype == torch.int8:
            continue
        if value.dtype == torch.int8 and (scale := stored.get(name + SCALE)) is not None:
            value = (value.float().flatten(1) * scale.float()[:, None]).view(value.shape)
        state[name] = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return state
