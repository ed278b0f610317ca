"""Which expansions a step allows, and the push towards a caption's words."""

import math

import numpy as np
import pytest
import torch

from lexlip.train.grounding import controlled, drawn_expansion, expansion_share, push


def test_the_share_grows_in_equal_steps(make_config):
    config = make_config(expansion_start=0.2, expansion_end=0.6)
    assert [expansion_share(config, step, 100) for step in (0, 50, 100, 150)] == pytest.approx([0.2, 0.4, 0.6, 0.6])


@pytest.mark.parametrize("terms", [1, 30])
def test_so_many_are_allowed_and_the_same_in_every_batch(make_config, terms):
    config = make_config(expansion_start=0.25, expansion_end=0.25)
    ids = torch.arange(-2000, 2000)
    batch = {"image_id": ids, "caption_number": ids % 3}
    drawn = drawn_expansion(config, batch, 7, 100, terms)
    assert drawn.shape == (4000, terms) and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(0.25, abs=0.03)
    some = torch.from_numpy(np.random.default_rng(0).permutation(4000)[:50])
    part = {name: value[some] for name, value in batch.items()}
    assert torch.equal(drawn_expansion(config, part, 7, 100, terms), drawn[some])
    assert not torch.equal(drawn_expansion(config, batch, 8, 100, terms), drawn)  # another step
    assert not torch.equal(drawn_expansion(config, {**batch, "caption_number": ids % 3 + 1}, 7, 100, terms), drawn)


def test_a_caption_keeps_its_own_terms():
    weights = torch.tensor([[1.0, 2.0, 3.0]] * 2)
    own = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    assert controlled(weights, own, torch.tensor([[0.0], [1.0]])).tolist() == [[0, 2, 0], [1, 2, 3]]
    assert controlled(weights, own, torch.tensor([[1.0, 0, 0], [0, 0, 0]])).tolist() == [[1, 2, 0], [0, 2, 0]]


def test_push_by_hand():
    logits = torch.tensor([[2.0, 1.0, -3.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    weights, own = torch.log1p(logits.relu()), torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.0, 0.0]])
    values = push(logits, weights, own)
    assert values.tolist() == pytest.approx([math.log(1 + math.exp(-2)), 0])  # lost terms are left lost
    values = push(logits, weights, own, floor=1.0)
    first = 0.5 * (math.log(3) + 1)
    wanted = (first * math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3))) / (first + 1)
    assert values.tolist() == pytest.approx([wanted, math.log(1 + math.exp(1))])
    values.sum().backward()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[0, [0, 2]] < 0).all() and logits.grad[1, 0] < 0
