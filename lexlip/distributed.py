"""The few collectives that training needs, each the identity on one process.

Every rank computes the loss of the global batch and DistributedDataParallel averages the parameter gradients over
W ranks. A gathered tensor's gradient is therefore the same on every rank: taking the own slice times W gives exactly
the gradient of one process with the whole batch, without a second collective in the backward pass.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


class LostContact(RuntimeError):
    """Another process of the run ended or cannot be reached; the message says what was seen and what to do."""


# What gloo, NCCL and torch's store say when a process is gone, silent or unreachable.
_LOST = (
    "timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe", "nccl",
    "no route to host", "network is unreachable", "socket",
)  # fmt: skip


def explain_lost_contact(error: RuntimeError, processes: int, timeout: int) -> LostContact | None:
    """An error of the process group in plain words; None if it is of another kind.

    Args:
        error: from a step of a run.
        processes: of the run.
        timeout: seconds that a process waits for the others (`collective_timeout`).
    """
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


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient; ranks may hold different numbers of rows.

    Args:
        x: (n_rank, ...) tensor, same trailing shape and dtype on every rank.

    Returns:
        (sum of n_rank, ...) tensor, the same on every rank.
    """
    world = world_size()
    if world == 1:
        return x.detach()
    x = x.detach().contiguous()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    rows = [int(c) for c in counts]
    padded = x.new_zeros((max(rows), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


def gather_objects(value: object) -> list:
    """One picklable value per rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        everything = gather_rows(x)
        starts = gather_rows(torch.tensor([len(x)], device=x.device)).cumsum(0).tolist()
        ctx.stop = starts[rank()]
        ctx.rows = len(x)
        return everything

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad[ctx.stop - ctx.rows : ctx.stop] * world_size()


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * world_size()


def gather_with_grad(x: Tensor) -> Tensor:
    """Like `gather_rows`, with the gradient that the module docstring describes."""
    return x if world_size() == 1 else _GatherRows.apply(x)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, same shape, with the gradient that the module docstring describes."""
    return x if world_size() == 1 else _SumOverRanks.apply(x)
