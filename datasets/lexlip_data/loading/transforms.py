"""PIL image -> tensor (3, H, W): pixels as they are for the loaders, normalised to [-1, 1] for the model.

Loaders hand on 8-bit pixels, a quarter of the bytes to copy between processes and to the device, where `normalise`
makes the same floats of them as in a loader, bit for bit.

`vit`: shorter side to `size` (bicubic), centre crop, mean and standard deviation 0.5.
`vit_randaug`: ViLT's RandAugment first (`lexlip_data.loading.randaug`), as the authors have it.
`torchvision_randaug`: torchvision's instead, with other operations and ranges. Both draw from global generators, so
call them inside `lexlip_data.loading.rng.isolated`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from lexlip_data.errors import DataError
from lexlip_data.loading.randaug import vilt_randaug
from lexlip_data.sources.images import square_of


def _torchvision_randaug(image: Image.Image) -> Image.Image:
    from torchvision import transforms as tv  # here and below: it takes tenths of a second, and texts need none of it

    return tv.RandAugment(2, 9)(image)


_AUGMENT: dict[str, Callable[[Image.Image], Image.Image] | None] = {
    "vit": None,
    "vit_randaug": vilt_randaug,
    "torchvision_randaug": _torchvision_randaug,
}
TRANSFORM_KEYS = tuple(_AUGMENT)
_OTHERS = {  # of the official code, with or without _randaug behind them
    "pixelbert": "gives images of different sizes, which no batch holds",
    "imagenet": "normalises by other numbers, which no model here knows",
    "beit": "gives three tensors for one image, which the official code does not take either",
}


def build_transform(keys: str | list[str], size: int) -> Callable[[Image.Image], torch.Tensor]:
    """What the model takes: `build_pixels`, then `normalise`; float32 (3, size, size). Arguments as there."""
    from torchvision import transforms as tv

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
    if wrong := refusal_of(key_list):
        raise DataError(f"transform keys {key_list}: {wrong}")
    if size < 1:
        raise DataError(f"image_size {size}: must be a positive number of pixels")
    return partial(_pixels, augment=_AUGMENT[key_list[0]], size=size)  # a partial can be sent to spawned workers


def refusal_of(keys: list[str]) -> str:
    """What is wrong with the transform keys of a config; "" where nothing is."""
    if len(keys) == 1 and keys[0] in TRANSFORM_KEYS:
        return ""
    known = f"give exactly one of {', '.join(TRANSFORM_KEYS)}"
    theirs = _OTHERS.get(keys[0].removesuffix("_randaug")) if len(keys) == 1 else None
    return f"the official {keys[0]} {theirs}; {known}" if theirs else known


def is_random(keys: str | list[str]) -> bool:
    """Whether the transform draws random numbers."""
    return any(_AUGMENT.get(key) for key in ([keys] if isinstance(keys, str) else keys))


def _pixels(image: Image.Image | np.ndarray, augment: Callable | None, size: int) -> torch.Tensor:
    if isinstance(image, np.ndarray) and (augment is not None or image.shape[:2] != (size, size)):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        image = np.array(square_of(image if augment is None else augment(image), size))
    return torch.from_numpy(image.transpose(2, 0, 1))  # a view: rows of pixels stay together
