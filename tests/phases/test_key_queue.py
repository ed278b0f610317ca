"""The queue of past keys against a plain list."""

import pytest
import torch

from Phase2.key_queue import KeyQueue


def test_by_hand():
    queue = KeyQueue(3, 1)
    assert [len(part) for part in queue.negatives()] == [0, 0]
    queue.push(torch.tensor([[1.0], [2.0]]), torch.tensor([10, 20]))
    keys, ids = queue.negatives()
    assert (keys.flatten().tolist(), ids.tolist()) == ([1, 2], [10, 20])
    queue.push(torch.tensor([[3.0], [4.0]]), torch.tensor([30, 40]))  # past the end: nothing is dropped
    keys, ids = queue.negatives()
    assert (keys.flatten().tolist(), ids.tolist()) == ([4, 2, 3], [40, 20, 30])
    assert (int(queue.position), int(queue.filled)) == (1, 3)


@pytest.mark.parametrize("size", [4, 7, 12])
def test_it_holds_the_last_keys_whatever_came(size):
    g = torch.Generator().manual_seed(size)
    queue, everything = KeyQueue(size, 3), []
    for _ in range(30):
        count = int(torch.randint(0, 5, (1,), generator=g))
        keys, ids = torch.rand(count, 3, generator=g), torch.randint(100, (count,), generator=g)
        queue.push(keys, ids)
        everything += list(zip(ids.tolist(), map(tuple, keys.tolist()), strict=True))
        keys, ids = queue.negatives()
        held = sorted(zip(ids.tolist(), map(tuple, keys.tolist()), strict=True))
        assert held == sorted(everything[-size:])
        assert int(queue.filled) == min(size, len(everything))
        assert int(queue.position) == len(everything) % size


def test_a_step_as_large_as_the_queue_fills_it_and_a_larger_one_is_refused():
    queue = KeyQueue(2, 1)
    queue.push(torch.ones(2, 1), torch.arange(2))
    assert int(queue.filled) == 2 and int(queue.position) == 0
    with pytest.raises(ValueError, match="3 keys .* queue of 2; set queue_size"):
        queue.push(torch.ones(3, 1), torch.arange(3))


def test_it_is_part_of_the_checkpoint():
    queue, again = KeyQueue(3, 2), KeyQueue(3, 2)
    queue.push(torch.rand(2, 2), torch.tensor([5, 6]))
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.negatives()[0], queue.negatives()[0])
    assert again.negatives()[1].tolist() == [5, 6]


def test_stored_in_16_bits():
    queue = KeyQueue(2, 2, torch.float16)
    queue.push(torch.tensor([[0.1, 0.2]]), torch.tensor([1]))
    assert queue.negatives()[0].dtype == torch.float16
    assert queue.negatives()[0].tolist()[0] == pytest.approx([0.1, 0.2], abs=1e-4)
