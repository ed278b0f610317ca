"""Global batches do not depend on the number of processes, and can be resumed exactly."""

import numpy as np
import pytest

from lexlip_data.errors import DataError
from lexlip_data.loading.sampler import GlobalBatchSampler, shard


def batches(world_size: int, epoch: int = 0, start: int = 0, **kw) -> list[list[tuple[int, int]]]:
    """The global batches, put together from all ranks."""
    ranks = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(103, 12, rank, world_size, seed=5, **kw)
        sampler.set_epoch(epoch)
        sampler.set_start(start)
        ranks.append(list(sampler))
    return [sum(parts, []) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
@pytest.mark.parametrize("shuffle", [True, False])
def test_world_size_invariance(world_size, shuffle):
    assert batches(world_size, shuffle=shuffle) == batches(1, shuffle=shuffle)


def test_an_epoch_is_a_permutation_of_its_own():
    one, two = batches(1, epoch=0), batches(1, epoch=1)
    assert len(one) == 103 // 12 and {len(batch) for batch in one} == {12}
    for epoch, of_epoch in enumerate((one, two)):
        indices = [index for batch in of_epoch for _, index in batch]
        assert len(set(indices)) == len(indices) == 96
        assert {e for batch in of_epoch for e, _ in batch} == {epoch}
        assert all(type(index) is int for index in indices)
    assert [i for batch in one for _, i in batch] != [i for batch in two for _, i in batch]
    assert one == batches(1, epoch=0)


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_resume_inside_an_epoch(start):
    assert batches(2, epoch=3, start=start) == batches(1, epoch=3)[start:]


def test_the_next_epoch_starts_at_its_beginning():
    sampler = GlobalBatchSampler(20, 4, seed=1)
    sampler.set_start(3)
    sampler.set_epoch(0)  # pytorch-lightning calls it for the epoch that is resumed
    assert len(list(sampler)) == 2 and len(sampler) == 5
    sampler.set_epoch(1)
    assert len(list(sampler)) == 5


def test_keeping_the_last_batch_gives_every_process_the_same_steps():
    parts = [list(GlobalBatchSampler(23, 8, rank, 4, shuffle=False, drop_last=False)) for rank in range(4)]
    assert {len(part) for part in parts} == {3}
    assert [len(batch) for batch in parts[3]] == [2, 2, 1]
    assert sorted(i for part in parts for batch in part for _, i in batch) == list(range(20))
    assert [len(batch) for batch in GlobalBatchSampler(3, 8, shuffle=False, drop_last=False)] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4), "3 samples are fewer than one batch of 4"),
        ((30, 5, 0, 2), "batch_size 5 cannot be split evenly over 2"),
        ((30, 4, 2, 2), "rank 2 of 2"),
        ((30, 0), "batch_size 0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(DataError, match=message):
        GlobalBatchSampler(*arguments)
    with pytest.raises(DataError, match="cannot start at batch 6"):
        GlobalBatchSampler(20, 4).set_start(6)


@pytest.mark.parametrize(("n", "world_size"), [(10, 3), (2, 4), (0, 2), (1000, 7)])
def test_shards_cover_everything_once(n, world_size):
    parts = [shard(n, rank, world_size) for rank in range(world_size)]
    assert [i for part in parts for i in part] == list(range(n))
    assert np.ptp([len(part) for part in parts]) <= 1
