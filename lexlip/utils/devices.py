"""Where a model runs."""

import os

import torch

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
