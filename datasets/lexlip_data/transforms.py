"""PIL picture -> float tensor (3, H, W) in [-1, 1].

`vit`: shorter side to `size` (bicubic), centre crop, mean and standard deviation 0.5.
`vit_randaug`: RandAugment (two operations of magnitude 9) on the picture first; it draws from torch's global
generator, so call it inside `lexlip_data.rng.isolated`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torchvision import transforms as tv

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.pictures import open_image

__all__ = ["BrokenImage", "TRANSFORM_KEYS", "build_transform", "open_image"]

TRANSFORM_KEYS = ("vit", "vit_randaug")


def build_transform(keys: str | list[str], size: int) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of one key, for square pictures of `size` pixels.

    Args:
        keys: a key, or a list that holds exactly one (the form of `train_transform_keys`).
        size: side of the square, in pixels.
    Returns:
        a function from an RGB picture to a float32 tensor (3, size, size).
    Raises:
        DataError: unknown key, several keys, or a size that is not positive.
    """
    key_list = [keys] if isinstance(keys, str) else list(keys)
    if len(key_list) != 1 or key_list[0] not in TRANSFORM_KEYS:
        raise DataError(f"transform keys {key_list}: give exactly one of {list(TRANSFORM_KEYS)}")
    if size < 1:
        raise DataError(f"image_size {size}: must be a positive number of pixels")
    steps: list[Callable] = [tv.RandAugment(2, 9)] if key_list[0] == "vit_randaug" else []
    steps += [
        tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC),
        tv.CenterCrop(size),
        tv.ToTensor(),
        tv.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
    ]
    return tv.Compose(steps)


def is_random(keys: str | list[str]) -> bool:
    """Whether the transform draws random numbers."""
    return "vit_randaug" in ([keys] if isinstance(keys, str) else keys)
