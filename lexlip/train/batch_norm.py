"""Running statistics of batch norm, which no gradient moves: every forward pass of training does.

Only convolutional towers have such layers. A forward pass normalises by its own rows in any case; this is about the
running mean and variance that validation and the saved model use.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lexlip.utils.distributed import sum_over_ranks, world_size


def _in_training(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]


def _tables(module: nn.Module, *names: str) -> list[Tensor]:
    tables = [getattr(part, name) for part in _in_training(module) for name in names]
    return [table for table in tables if table is not None]


def statistics_of(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Every running table and count in training, each with a copy of its values, for `restore_statistics`."""
    return [(table, table.clone()) for table in _tables(module, "running_mean", "running_var", "num_batches_tracked")]


def restore_statistics(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Undo what forward passes did since `statistics_of`: a step that is left out leaves nothing behind."""
    for table, before in kept:
        table.copy_(before)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Forward passes of training meanwhile leave the running statistics as they are."""
    moved = [part for part in _in_training(module) if part.track_running_stats]
    for part in moved:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in moved:
            part.track_running_stats = True


def average_statistics(module: nn.Module) -> None:
    """Make the running statistics of all processes their mean, so that all validate, and save, the same model."""
    tables = _tables(module, "running_mean", "running_var")
    if tables and world_size() > 1:
        mean = sum_over_ranks(torch.cat(tables)) / world_size()
        for table, part in zip(tables, mean.split([len(table) for table in tables]), strict=True):
            table.copy_(part)
