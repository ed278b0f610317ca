"""The few collectives that training needs, each the identity on one process.

Every rank computes the loss of the global batch and DistributedDataParallel averages the parameter gradients over
W ranks. A gathered tensor's gradient is therefore the same on every rank: taking the own slice times W gives exactly
the gradient of one process with the whole batch, without a second collective in the backward pass.
"""

import os
from collections.abc import Sequence
from types import EllipsisType

import torch
import torch.distributed as dist
from torch import Tensor

from lexlip.errors import LostContact

# What gloo, NCCL and torch's store say when a process is gone, silent or unreachable.
_LOST = (
    "timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe", "nccl",
    "no route to host", "network is unreachable", "socket",
)  # fmt: skip


def explain_lost_contact(error: Exception, processes: int, timeout: int) -> LostContact | None:
    """An error of a run's process group, with its `collective_timeout`, in plain words; None if of another kind."""
    text = str(error)
    if processes == 1 or not any(word in text.lower() for word in _LOST):
        return None
    own = os.environ.get("RANK", rank())
    first = text.strip().splitlines()[0][:300]
    return LostContact(
        f"process {own} of {processes} lost contact with another one, which ended (see its output), hangs, or cannot "
        f"be reached over the network; waited at most collective_timeout={timeout} s ({first}). The last checkpoint "
        "is whole; the same command with resume_from=auto goes on from it"
    )


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(x: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, without gradient; ranks may hold different numbers of rows.

    Args:
        x: (n_rank, ...) tensor, same trailing shape and dtype on every rank.
        rows: n of every rank, where it is known; otherwise it is exchanged first.

    Returns:
        (sum of n_rank, ...) tensor, the same on every rank.
    """
    x = x.detach().contiguous()
    if world_size() == 1:
        return x
    rows = rows or _rows_of_ranks(x)
    most = max(rows)
    if len(x) < most:
        x = torch.cat([x, x.new_zeros((most - len(x), *x.shape[1:]))])
    everything = x.new_empty((most * len(rows), *x.shape[1:]))
    dist.all_gather_into_tensor(everything, x)
    if min(rows) == most:
        return everything
    return torch.cat([part[:n] for part, n in zip(everything.split(most), rows, strict=True)])


def _rows_of_ranks(x: Tensor) -> list[int]:
    return gather_rows(torch.tensor([len(x)], device=x.device), [1] * world_size()).tolist()


def gather_objects(value: object) -> list:
    """One picklable value per rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _OfAllRanks(torch.autograd.Function):
    """`whole`, which all ranks made of their `x` together; its part `own` carries the gradient of this rank's."""

    @staticmethod
    def forward(ctx, x: Tensor, whole: Tensor, own: slice | EllipsisType) -> Tensor:
        ctx.own = own
        return whole

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.own] * world_size(), None, None


def gather_with_grad(x: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """Like `gather_rows`, with the gradient that the module docstring describes."""
    if world_size() == 1:
        return x
    rows = rows or _rows_of_ranks(x)
    start = sum(rows[: rank()])
    return _OfAllRanks.apply(x, gather_rows(x, rows), slice(start, start + len(x)))


def gather_many(parts: Sequence[Tensor], rows: Sequence[int] | None = None) -> Sequence[Tensor]:
    """Several (n_rank, width) tensors, each of its own width, in one `gather_with_grad`: one exchange for all."""
    if world_size() == 1:
        return parts
    return gather_with_grad(torch.cat(list(parts), dim=1), rows).split([part.shape[1] for part in parts], dim=1)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, same shape, with the gradient that the module docstring describes."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return _OfAllRanks.apply(x, total, ...)
