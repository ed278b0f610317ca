"""PIL image -> tensor (3, H, W): pixels as they are for the loaders, normalised to [-1, 1] for the model.

Loaders hand on 8-bit pixels, a quarter of the bytes to copy between processes and to the device, where `normalise`
makes the same floats of them as in a loader, bit for bit.

`vit`: shorter side to `size` (bicubic), centre crop, mean and standard deviation 0.5.
`vit_randaug`: RandAugment (two operations of magnitude 9) first; it draws from torch's global generator, so call it
inside `lexlip_data.loading.rng.isolated`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as tv

from lexlip_data.errors import DataError
from lexlip_data.sources.images import square_of

TRANSFORM_KEYS = ("vit", "vit_randaug")


def build_transform(keys: str | list[str], size: int) -> Callable[[Image.Image], torch.Tensor]:
    """What the model takes: `build_pixels`, then `normalise`; float32 (3, size, size). Arguments as there."""
    return tv.Compose([build_pixels(keys, size), normalise])


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit pixels to float32 in [-1, 1]: mean and standard deviation 0.5. Any shape; floats pass as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    return pixels.contiguous().to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def build_pixels(keys: str | list[str], size: int) -> Callable[[Image.Image | np.ndarray], torch.Tensor]:
    """The transform of a key, or of the one in a list: an RGB image, or its uint8 (H, W, 3), to uint8 (3, size, size).

    Raises:
        DataError: unknown key, several keys, or a size that is not positive.
    """
    key_list = [keys] if isinstance(keys, str) else list(keys)
    if len(key_list) != 1 or key_list[0] not in TRANSFORM_KEYS:
        raise DataError(f"transform keys {key_list}: give exactly one of {list(TRANSFORM_KEYS)}")
    if size < 1:
        raise DataError(f"image_size {size}: must be a positive number of pixels")
    augment = tv.RandAugment(2, 9) if is_random(keys) else None
    return partial(_pixels, augment=augment, size=size)  # a partial can be sent to spawned workers


def is_random(keys: str | list[str]) -> bool:
    """Whether the transform draws random numbers."""
    return "vit_randaug" in ([keys] if isinstance(keys, str) else keys)


def _pixels(image: Image.Image | np.ndarray, augment: Callable | None, size: int) -> torch.Tensor:
    if isinstance(image, np.ndarray) and (augment is not None or image.shape[:2] != (size, size)):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        image = np.array(square_of(image if augment is None else augment(image), size))
    return torch.from_numpy(image.transpose(2, 0, 1))  # a view: rows of pixels stay together
