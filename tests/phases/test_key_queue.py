"""The ring of past keys against a plain list."""

import pytest
import torch

from Phase2.key_queue import KeyQueue


def test_by_hand():
    ring = KeyQueue(3, 1)
    assert [len(part) for part in ring.negatives()] == [0, 0]
    ring.push(torch.tensor([[1.0], [2.0]]), torch.tensor([10, 20]))
    keys, ids = ring.negatives()
    assert (keys.flatten().tolist(), ids.tolist()) == ([1, 2], [10, 20])
    ring.push(torch.tensor([[3.0], [4.0]]), torch.tensor([30, 40]))  # past the end: nothing is dropped
    keys, ids = ring.negatives()
    assert (keys.flatten().tolist(), ids.tolist()) == ([4, 2, 3], [40, 20, 30])
    assert (int(ring.position), int(ring.filled)) == (1, 3)


@pytest.mark.parametrize("size", [4, 7, 12])
def test_it_holds_the_last_keys_whatever_came(size):
    g = torch.Generator().manual_seed(size)
    ring, everything = KeyQueue(size, 3), []
    for _ in range(30):
        count = int(torch.randint(0, 5, (1,), generator=g))
        keys, ids = torch.rand(count, 3, generator=g), torch.randint(100, (count,), generator=g)
        ring.push(keys, ids)
        everything += list(zip(ids.tolist(), map(tuple, keys.tolist()), strict=True))
        keys, ids = ring.negatives()
        held = sorted(zip(ids.tolist(), map(tuple, keys.tolist()), strict=True))
        assert held == sorted(everything[-size:])
        assert int(ring.filled) == min(size, len(everything))
        assert int(ring.position) == len(everything) % size


def test_a_step_as_large_as_the_ring_fills_it_and_a_larger_one_is_refused():
    ring = KeyQueue(2, 1)
    ring.push(torch.ones(2, 1), torch.arange(2))
    assert int(ring.filled) == 2 and int(ring.position) == 0
    with pytest.raises(ValueError, match="3 keys .* queue of 2; set queue_size"):
        ring.push(torch.ones(3, 1), torch.arange(3))


def test_it_is_part_of_the_checkpoint():
    ring, again = KeyQueue(3, 2), KeyQueue(3, 2)
    ring.push(torch.rand(2, 2), torch.tensor([5, 6]))
    again.load_state_dict(ring.state_dict())
    assert torch.equal(again.negatives()[0], ring.negatives()[0])
    assert again.negatives()[1].tolist() == [5, 6]


def test_stored_in_16_bits():
    ring = KeyQueue(2, 2, torch.float16)
    ring.push(torch.tensor([[0.1, 0.2]]), torch.tensor([1]))
    assert ring.negatives()[0].dtype == torch.float16
    assert ring.negatives()[0].tolist()[0] == pytest.approx([0.1, 0.2], abs=1e-4)
