"""Which pairs are in which batch: a function of (seed, epoch) alone, whatever the number of processes.

The sampler yields (epoch, index), so that a worker needs no other state to know a sample's randomness. Costs one
permutation of the pairs per epoch and process: 8 bytes per pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lexlip_data.errors import DataError


@dataclass(eq=False)
class GlobalBatchSampler:
    """Batches of the whole training, cut into one contiguous block per process.

    Global batch g of an epoch is order[g*B : (g+1)*B]; process r gets block r of it. So the blocks of all
    processes, put together in the order of their ranks, are the same batch for any number of processes.

    Raises:
        DataError: B is not a positive multiple of world_size, or there are too few samples for one batch.
    """

    n: int  # number of samples
    batch_size: int  # the global batch B, over all processes
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True  # a new order every epoch; else 0..n-1
    drop_last: bool = True  # the incomplete last batch; else it is cut to a multiple of world_size

    def __post_init__(self) -> None:
        n, batch_size, rank, world_size = self.n, self.batch_size, self.rank, self.world_size
        if world_size < 1 or not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size} processes: rank must be in 0..{world_size - 1}")
        if batch_size < 1 or batch_size % world_size:
            raise DataError(f"batch_size {batch_size} cannot be split evenly over {world_size} processes")
        if self.drop_last and n < batch_size:
            raise DataError(f"{n} samples are fewer than one batch of {batch_size}: lower batch_size or add data")
        if n < world_size:
            raise DataError(f"{n} samples for {world_size} processes: every process needs at least one")
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. A new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def set_start(self, step: int) -> None:
        """Resume inside the current epoch: skip its first `step` global batches, until set_epoch moves on."""
        if not 0 <= step <= len(self):
            raise DataError(f"cannot start at batch {step} of an epoch of {len(self)} batches")
        self.start = step

    def __len__(self) -> int:
        """Global batches of a whole epoch, those skipped by set_start included."""
        whole, rest = divmod(self.n, self.batch_size)
        return whole + (not self.drop_last and rest >= self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng(np.random.SeedSequence([self.seed, epoch])).permutation(self.n)
        for g in range(self.start, len(self)):
            first = g * self.batch_size
            size = min(self.batch_size, self.n - first) // self.world_size
            low = first + self.rank * size
            yield [(epoch, index) for index in order[low : low + size].tolist()]


def shard(n: int, rank: int, world_size: int) -> range:
    """The contiguous part of 0..n-1 that a process evaluates; nothing is padded, parts differ by at most one."""
    return range(rank * n // world_size, (rank + 1) * n // world_size)
