"""The equations against loops over their definitions, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lexlip.train.losses import (
    cut_scores,
    flops,
    global_count,
    in_batch_contrastive,
    masked_lm,
    mean_l1,
    queue_contrastive,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).abs(), dim=-1)


def info_nce(query, positive, negatives, temperature):
    scores = [math.exp(float(query @ key) / temperature) for key in [positive, *negatives]]
    return -math.log(scores[0] / sum(scores))


@pytest.mark.parametrize("ids", [None, [1, 2, 3, 4, 5], [1, 2, 1, 1, 2], [7, 7, 7, 7, 7]])
def test_in_batch_contrastive_is_the_loop(ids):
    text, image, temperature = unit(5, 9), unit(5, 9, seed=1), 0.3
    losses = []
    for one, other in ((text, image), (image, text)):
        for i in range(5):
            rest = [other[j] for j in range(5) if j != i and (ids is None or ids[j] != ids[i])]
            losses.append(info_nce(one[i], other[i], rest, temperature))
    value = in_batch_contrastive(text, image, temperature, None if ids is None else torch.tensor(ids))
    assert float(value) == pytest.approx(sum(losses) / 10, abs=1e-5)


def test_in_batch_contrastive_by_hand():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    value = in_batch_contrastive(text, text, 1.0)
    assert float(value) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(in_batch_contrastive(text, text, 1.0, torch.tensor([4, 4]))) == 0


def test_in_batch_contrastive_has_a_finite_gradient_where_all_others_are_masked():
    text, image = unit(3, 4).requires_grad_(), unit(3, 4, seed=1).requires_grad_()
    in_batch_contrastive(text, image, 0.05, torch.tensor([1, 1, 2])).backward()
    assert torch.isfinite(text.grad).all() and torch.isfinite(image.grad).all()
    assert text.grad.abs().sum() > 0


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("past", [0, 1, 7])
def test_queue_contrastive_is_the_loop(past, excluded):
    queries, positives, negatives = unit(4, 9), unit(4, 9, seed=1), unit(past, 9, seed=2)
    out = torch.rand(4, past, generator=torch.Generator().manual_seed(3)) < 0.4 if excluded else None
    wanted = []
    for i in range(4):
        rest = [negatives[k] for k in range(past) if out is None or not out[i, k]]
        wanted.append(info_nce(queries[i], positives[i], rest, 0.2))
    value = queue_contrastive(queries, positives, negatives, 0.2, out)
    assert value.tolist() == pytest.approx(wanted, abs=1e-5)


def test_queue_contrastive_by_hand():
    query, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    past = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    value = queue_contrastive(query, other, past, 0.5)
    assert float(value) == pytest.approx(math.log(math.exp(1.2) + 1 + math.exp(2)) - 1.2)
    value = queue_contrastive(query, other, past, 0.5, torch.tensor([[False, True]]))
    assert float(value) == pytest.approx(math.log(math.exp(1.2) + 1) - 1.2)
    assert float(queue_contrastive(query, other, past, 0.5, torch.tensor([[True, True]]))) == 0


def test_queue_contrastive_sends_gradient_to_the_queries_alone():
    queries = unit(2, 5).requires_grad_()
    queue_contrastive(queries, unit(2, 5, seed=1), unit(3, 5, seed=2).half(), 0.05).sum().backward()
    assert queries.grad.dtype == torch.float32 and queries.grad.abs().sum() > 0


def test_flops_by_hand():
    vectors = torch.tensor([[1.0, 0.0, -2.0], [3.0, 0.0, 0.0]])
    assert float(flops(vectors)) == 2**2 + 0 + 1**2  # squares of the means of |r|


def test_short_vectors_are_not_penalised():
    vectors = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])  # two active terms, and one
    assert float(flops(vectors, threshold=1)) == 0.5**2 + 1**2 and float(flops(vectors, threshold=2)) == 0
    assert float(mean_l1(vectors)) == (1 + 2 + 3) / 2 and float(mean_l1(vectors, threshold=1)) == (1 + 2) / 2


def test_flops_is_the_loop():
    vectors = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    wanted = sum((sum(abs(float(vectors[i, v])) for i in range(5)) / 5) ** 2 for v in range(11))
    assert float(flops(vectors)) == pytest.approx(wanted, rel=1e-5)


def test_masked_lm_is_the_mean_cross_entropy():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 13, generator=g), torch.randint(13, (6,), generator=g)
    torch.testing.assert_close(masked_lm(logits, labels, 6.0), F.cross_entropy(logits, labels))
    halves = masked_lm(logits[:2], labels[:2], 6.0) + masked_lm(logits[2:], labels[2:], 6.0)
    torch.testing.assert_close(halves, F.cross_entropy(logits, labels))


def test_masked_lm_by_hand_and_without_any_masked_word():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert float(masked_lm(logits, torch.tensor([0]), 1.0)) == pytest.approx(-math.log(0.75))
    assert float(masked_lm(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 1.0)) == 0


def test_global_count_is_at_least_one():
    assert float(global_count(torch.tensor([[-100, 4], [9, -100]]))) == 2
    assert float(global_count(torch.tensor([[-100, -100]]))) == 1


@pytest.mark.parametrize("k", [1, 3, 40])
def test_cut_scores_and_their_gradients_are_those_of_cut_vectors(k):
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 40), (4, 40))
    ours = [torch.rand(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [v.detach().clone().requires_grad_() for v in ours]
    cut = [F.normalize(v * (v >= v.topk(k, 1).values[:, -1:]), dim=1) for v in theirs]
    wanted, found = cut[0] @ cut[1].T, cut_scores(*ours, k)
    torch.testing.assert_close(found, wanted)
    upstream = torch.rand(5, 4, generator=generator)
    (found * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
