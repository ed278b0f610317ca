"""Keys of a step's own earlier micro-batches as negatives, as in the official code (`queue_update=micro_batch`).

There each micro-batch pushes its keys before the next one is compared with the queue. Here the whole step is compared
at once, so both are listed, the queue as it was and the step's own keys, and who may not see which. B rows of this
process in the order of their micro-batches, K past keys, M keys of the step, of all processes. Costs a copy of the
queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from Phase2.key_queue import KeyQueue


class Keys(NamedTuple):
    """The momentum encoder's vectors, (n, V) each, of a micro-batch of all processes, and their (n,) image ids."""

    text: Tensor
    image: Tensor
    ids: Tensor


def rows_by_micro_batch(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Of processes with so many rows each, the rows that each has in the first micro-batch of `size`, the next, ..."""
    for start in range(0, max(rows), size):
        yield [min(size, max(0, n - start)) for n in rows]


def with_step_keys(
    queue: KeyQueue, side: str, pushed: Sequence[Keys], rows: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The negatives of a step whose micro-batches see the keys of earlier ones.

    Args:
        side: "text" or "image", that the queue holds.
        pushed: keys of the step's micro-batches, in order.
        rows: B.
        size: rows of a micro-batch of this process.

    Returns:
        (K + M, V) keys, their image ids, and (B, K + M) true where a row does not see a key: the step's own from its
        micro-batch on, and past ones that earlier micro-batches have pushed out.
    """
    past, ids = queue.negatives()
    own = torch.arange(rows, device=ids.device) // size  # micro-batch of each row
    lengths = torch.tensor([len(keys.ids) for keys in pushed], device=ids.device)
    before = lengths.cumsum(0) - lengths  # keys that were pushed before each micro-batch
    age = (torch.arange(len(past), device=ids.device) - queue.position) % queue.size  # 0 is overwritten first
    gone = age[None, :] < before[own][:, None]
    later = torch.repeat_interleave(lengths)[None, :] >= own[:, None]
    keys = torch.cat([past, *(getattr(part, side).to(past.dtype) for part in pushed)])
    return keys, torch.cat([ids, *(part.ids for part in pushed)]), torch.cat([gone, later], dim=1)
