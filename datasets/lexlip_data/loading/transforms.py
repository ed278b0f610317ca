"""PIL picture -> tensor (3, H, W): pixels as they are for the loaders, normalised to [-1, 1] for the model.

Loaders hand on 8-bit pixels, a quarter of the bytes to copy between processes and to the device, where `normalise`
makes the same floats of them as in a loader, bit for bit.

`vit`: shorter side to `size` (bicubic), centre crop, mean and standard deviation 0.5.
`vit_randaug`: RandAugment (two operations of magnitude 9) on the picture first; it draws from torch's global
generator, so call it inside `lexlip_data.loading.rng.isolated`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as tv

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.sources.images import open_image

__all__ = ["BrokenImage", "TRANSFORM_KEYS", "build_transform", "open_image"]

TRANSFORM_KEYS = ("vit", "vit_randaug")


def build_transform(keys: str | list[str], size: int) -> Callable[[Image.Image], torch.Tensor]:
    """What the model takes: `build_pixels`, then `normalise`; float32 (3, size, size). Arguments as there."""
    return partial(_normalised, build_pixels(keys, size))


def _normalised(pixels: Callable[[Image.Image], torch.Tensor], picture: Image.Image) -> torch.Tensor:
    return normalise(pixels(picture))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit pixels to float32 in [-1, 1]: mean and standard deviation 0.5. Any shape; floats pass as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    return pixels.contiguous().to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def build_pixels(keys: str | list[str], size: int) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of one key, for square pictures of `size` pixels.

    Args:
        keys: a key, or a list that holds exactly one (the form of `train_transform_keys`).
        size: side of the square, in pixels.
    Returns:
        a function from an RGB picture, or its uint8 array (H, W, 3), to a uint8 tensor (3, size, size).
    Raises:
        DataError: unknown key, several keys, or a size that is not positive.
    """
    key_list = [keys] if isinstance(keys, str) else list(keys)
    if len(key_list) != 1 or key_list[0] not in TRANSFORM_KEYS:
        raise DataError(f"transform keys {key_list}: give exactly one of {list(TRANSFORM_KEYS)}")
    if size < 1:
        raise DataError(f"image_size {size}: must be a positive number of pixels")
    augment = tv.RandAugment(2, 9) if key_list[0] == "vit_randaug" else None
    return partial(_pixels, augment=augment, size=size)  # which spawned workers can be sent


def _pixels(picture: Image.Image | np.ndarray, augment: Callable | None, size: int) -> torch.Tensor:
    if augment is not None or isinstance(picture, np.ndarray) and picture.shape[:2] != (size, size):
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        picture = picture if augment is None else augment(picture)
    if isinstance(picture, Image.Image):
        picture = np.array(square_of(picture, size))
    return torch.from_numpy(picture.transpose(2, 0, 1))  # a view: rows of pixels stay together


def square_of(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (bicubic), then the middle square: torchvision's Resize and CenterCrop, bit for bit, but
    without their 40 microseconds of looking at their arguments, and faster where a picture is wider than high.

    Pillow resizes such a picture along its rows first, then along its columns: cropped in between, what is cut off is
    spared the second pass. RGB only: of a mode with alpha each pass would multiply the colours by it.
    """
    width, height = picture.size
    short = min(width, height)
    wide, high = (size if side == short else int(size * side / short) for side in (width, height))
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    if short != size and width > height:
        rows = picture.resize((wide, height), Image.Resampling.BICUBIC).crop((left, 0, left + size, height))
        return rows.resize((size, size), Image.Resampling.BICUBIC)
    if short != size:
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size)) if (wide, high) != (size, size) else picture


def is_random(keys: str | list[str]) -> bool:
    """Whether the transform draws random numbers."""
    return "vit_randaug" in ([keys] if isinstance(keys, str) else keys)
