"""Gradient caching as a function: against one large batch, without any trainer."""

import pytest
import torch
from torch import nn

from lexlip.train.step import cached_backward, split_batch


class Tower(nn.Module):
    """Two linear layers with dropout between, a loss that each row has alone, and one over all pairs of rows."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.second = nn.Linear(3, 5), nn.Dropout(dropout), nn.Linear(5, 4)
        self.calls = []

    def encode(self, batch, vectors_only):
        self.calls.append((len(batch["image_id"]), vectors_only))
        hidden = self.drop(self.first(batch["image"]).tanh())
        losses = {} if vectors_only else {"alone": hidden.square().sum() / 7}
        return {"text": self.second(hidden), "image": hidden}, losses

    def batch_losses(self, vectors):
        scores = vectors["text"] @ vectors["text"].T
        return {"pairs": scores.logsumexp(1).mean(), "sizes": vectors["image"].abs().mean(0).square().sum()}

    def gradients(self):
        return {name: parameter.grad.clone() for name, parameter in self.named_parameters()}


def batch(rows=7):
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(rows, 3, generator=generator), "image_id": torch.arange(rows), "sample": ["kept"]}


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 99])
def test_losses_and_gradients_are_those_of_one_large_batch(rows):
    cached, whole = Tower(), Tower()
    losses = cached_backward(cached.encode, cached.batch_losses, list(split_batch(batch(), rows)))
    vectors, wanted = whole.encode(batch(), False)
    wanted |= whole.batch_losses(vectors)
    sum(wanted.values()).backward()
    assert losses.keys() == wanted.keys() and not any(value.requires_grad for value in losses.values())
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value.detach())
    for name, gradient in whole.gradients().items():
        torch.testing.assert_close(cached.gradients()[name], gradient)


def test_one_micro_batch_is_encoded_once_and_several_twice():
    tower = Tower()
    cached_backward(tower.encode, tower.batch_losses, [batch()])
    assert tower.calls == [(7, False)]
    tower.calls.clear()
    cached_backward(tower.encode, tower.batch_losses, list(split_batch(batch(), 3)))
    assert tower.calls == [(3, True), (3, True), (1, True), (3, False), (3, False), (1, False)]


def test_both_encodings_of_a_micro_batch_draw_the_same_dropout_and_the_next_step_another():
    tower, seen = Tower(dropout=0.5).train(), []

    def encode(part, vectors_only):
        vectors, losses = tower.encode(part, vectors_only)
        seen.append(vectors["image"].detach().clone())
        return vectors, losses

    torch.manual_seed(5)
    for _ in range(2):
        cached_backward(encode, tower.batch_losses, list(split_batch(batch(6), 3)))
    first, second = seen[:4], seen[4:]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], first[3])
    assert not torch.equal(first[0] == 0, first[1] == 0)
    assert not torch.equal(first[0], second[0]) and torch.equal(second[0], second[2])


def test_backward_is_told_which_call_is_the_last():
    tower, last = Tower(), []

    def backward(loss, is_last):
        last.append(is_last)
        loss.backward()

    cached_backward(tower.encode, tower.batch_losses, list(split_batch(batch(), 3)), backward)
    assert last == [False, False, True]


def test_losses_of_single_rows_alone_need_no_vectors():
    """As in training_mode=bottle."""
    cached, whole = Tower(), Tower()
    alone = lambda tower: lambda part, vectors_only: ({}, tower.encode(part, vectors_only)[1])
    losses = cached_backward(alone(cached), lambda vectors: {}, list(split_batch(batch(), 2)))
    whole.encode(batch(), False)[1]["alone"].backward()
    assert set(losses) == {"alone"}
    torch.testing.assert_close(cached.first.weight.grad, whole.first.weight.grad)


def test_split_batch_cuts_what_has_rows_and_keeps_the_rest():
    parts = list(split_batch({**batch(5), "count": torch.tensor(3.0)}, 2))
    assert [part["image_id"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [len(part["image"]) for part in parts] == [2, 2, 1]
    assert all(part["sample"] == ["kept"] and float(part["count"]) == 3 for part in parts)
