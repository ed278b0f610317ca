"""Where a model runs."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from lexlip.errors import UserError


def usable_device(name: str | None) -> torch.device:
    """A device by its name; without one a GPU for each process of the machine, else the CPU.

    Raises:
        UserError: there is no such device, or it cannot be used.
    """
    if name is None:
        count = torch.cuda.device_count()
        rank = os.environ.get("LOCAL_RANK", "0")
        if not rank.isdecimal():
            raise UserError(f"LOCAL_RANK={rank}; it must be a whole number, or unset without a launcher")
        name = f"cuda:{int(rank) % count}" if count else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


PIXELS = 1 << 18  # that go through a tower at once on a CPU: five images of 224 x 224


def in_parts(encode: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device) -> Tensor:
    """`encode`, which runs on a device, of (B, ...) images; on a CPU a few at a time.

    glibc gives blocks of more than 32 MB back to the system as soon as they are freed. With 64 images the layers of a
    convolutional tower are that large, and to get their pages anew took up to three quarters of the time. Transformers
    are as fast with few images as with many.
    """
    if device.type != "cpu" or not len(pixels):
        return encode(pixels)
    at_once = max(1, 3 * PIXELS // pixels[0].numel())
    return torch.cat([encode(part) for part in pixels.split(at_once)])
