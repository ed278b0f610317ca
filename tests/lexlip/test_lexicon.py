"""The pooled head against the textbook's (B, L, V) maximum, and the small functions by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lexlip import lexicon
from lexlip.lexicon import LexiconHead, keep_heaviest, lexicon_bottleneck, max_logits, saturate

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def textbook(hidden, weight, bias, mask=None):
    logits = hidden @ weight.T + bias
    if mask is not None:
        logits = logits.masked_fill(mask[:, :, None] == 0, -1e6)
    return logits.max(1).values


def inputs(batch, length, width, vocab, dtype=torch.float32, padded=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, generator=g, dtype=dtype) for shape in ((batch, length, width), (vocab, width))]
    tensors.append(torch.randn(vocab, generator=g, dtype=dtype))
    mask = None
    if padded:
        lengths = torch.randint(1, length + 1, (batch,), generator=g)
        mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    return [tensor.requires_grad_() for tensor in tensors], mask


def gradients(function, tensors, mask, upstream):
    value = function(*tensors, mask)
    return value, torch.autograd.grad((value * upstream).sum(), tensors)


def assert_same(one, two, tolerance):
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 1, 3, 7), (3, 7, 5, 11), (7, 13, 6, 101)])
@pytest.mark.parametrize("slice_numbers", [1, 300, 2**24])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_values_and_all_gradients_are_the_textbooks(monkeypatch, shape, padded, slice_numbers, density):
    monkeypatch.setattr(lexicon, "SLICE_NUMBERS", slice_numbers)
    batch, length, width, vocab = shape
    tensors, mask = inputs(batch, length, width, vocab, padded=padded)
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(batch, vocab, generator=g) * (torch.rand(batch, vocab, generator=g) < density)
    value, grads = gradients(max_logits, tensors, mask, upstream)
    wanted, wanted_grads = gradients(textbook, tensors, mask, upstream)
    torch.testing.assert_close(value, wanted)
    assert_same(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("share", [-1.0, 2.0])  # always dense, always sparse
def test_both_backward_ways_agree(monkeypatch, share):
    monkeypatch.setattr(lexicon, "SPARSE_SHARE", share)
    tensors, mask = inputs(4, 6, 5, 23)
    upstream = torch.randn(4, 23, generator=torch.Generator().manual_seed(2))
    upstream[:, ::2] = 0
    _, grads = gradients(max_logits, tensors, mask, upstream)
    assert_same(grads, gradients(textbook, tensors, mask, upstream)[1], 1e-5)


@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_gradcheck_in_double_precision(monkeypatch, share):
    """The pooled value is float32, so the numerical derivative is taken of the double-precision textbook."""
    monkeypatch.setattr(lexicon, "SPARSE_SHARE", share)
    tensors, mask = inputs(2, 3, 4, 5, torch.float64)
    upstream = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, grads = gradients(max_logits, tensors, mask, upstream)
    for tensor, grad in zip(tensors, grads, strict=True):
        numeric = torch.zeros_like(tensor)
        for at in range(tensor.numel()):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [t.detach().clone() for t in tensors]
                moved[[t is tensor for t in tensors].index(True)].view(-1)[at] += step
                sides.append((textbook(*moved, mask) * upstream).sum())
            numeric.view(-1)[at] = (sides[0] - sides[1]) / 2e-6
        torch.testing.assert_close(grad, numeric, rtol=1e-6, atol=1e-6)


def test_by_hand():
    hidden = torch.tensor([[[1.0], [3.0], [9.0]]], requires_grad=True)
    weight = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    bias = torch.tensor([0.5, 0.0], requires_grad=True)
    value = max_logits(hidden, weight, bias, torch.tensor([[1, 1, 0]]))
    assert value.tolist() == [[6.5, -1.0]]  # word 0 from token 1, word 1 from token 0; token 2 is padding
    value.backward(torch.tensor([[10.0, 1.0]]))
    assert hidden.grad.tolist() == [[[-1.0], [20.0], [0.0]]]
    assert weight.grad.tolist() == [[30.0], [1.0]]
    assert bias.grad.tolist() == [10.0, 1.0]


@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_a_tie_goes_to_one_token(monkeypatch, share):
    monkeypatch.setattr(lexicon, "SPARSE_SHARE", share)
    hidden = torch.ones(1, 4, 2, requires_grad=True)  # every token gives the same logit
    weight = torch.eye(2, requires_grad=True)
    max_logits(hidden, weight, torch.zeros(2, requires_grad=True)).sum().backward()
    assert sorted(hidden.grad.sum(2).flatten().tolist()) in ([0, 0, 0, 2], [0, 0, 1, 1])
    assert weight.grad.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_pools_in_16_bits_and_returns_float32(dtype):
    tensors, mask = inputs(3, 5, 8, 31)
    upstream = torch.randn(3, 31, generator=torch.Generator().manual_seed(4))
    wanted, wanted_grads = gradients(textbook, tensors, mask, upstream)
    with torch.autocast("cpu", dtype=dtype):
        value, grads = gradients(max_logits, tensors, mask, upstream)
    assert value.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [torch.float32] * 3
    assert not torch.equal(value, wanted)  # 16 bits were used
    torch.testing.assert_close(value, wanted, rtol=0.02, atol=0.05)
    for grad, want in zip(grads, wanted_grads, strict=True):
        # A near tie may go to the other token, so the whole is compared, not each number.
        assert (grad - want).norm() < 0.25 * want.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_many_small_contributions_to_one_word_are_not_lost_in_16_bits(monkeypatch, share, device):
    """1,024 equal gradients meet in one row of the decoder; added up in bfloat16 they would stop at 256."""
    monkeypatch.setattr(lexicon, "SPARSE_SHARE", share)
    hidden = torch.ones(1024, 1, 2, requires_grad=True, device=device)
    weight, bias = (torch.zeros(*shape, requires_grad=True, device=device) for shape in ((3, 2), (3,)))
    with torch.autocast(device, dtype=torch.bfloat16):
        value = max_logits(hidden, weight, bias)
    value[:, 1].sum().backward()
    assert weight.grad.tolist() == [[0, 0], [1024, 1024], [0, 0]]
    assert bias.grad.tolist() == [0, 1024, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_many_words_of_one_token_are_not_lost_in_16_bits(monkeypatch, share, device):
    """Likewise for a picture's token that gives the largest logit of very many words."""
    monkeypatch.setattr(lexicon, "SPARSE_SHARE", share)
    hidden = torch.zeros(1, 1, 2, requires_grad=True, device=device)
    weight, bias = (torch.ones(*shape, requires_grad=True, device=device) for shape in ((1024, 2), (1024,)))
    with torch.autocast(device, dtype=torch.bfloat16):
        value = max_logits(hidden, weight, bias)
    value.sum().backward()
    assert hidden.grad.tolist() == [[[1024, 1024]]]


def test_head_pools_what_it_would_give():
    torch.manual_seed(0)
    head = LexiconHead(6, 5, 17)
    states, mask = torch.randn(3, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    logits = head(states)
    assert logits.shape == (3, 4, 17)
    by_hand = head.decoder(F.layer_norm(F.gelu(head.dense(states)), (5,), eps=1e-12))
    torch.testing.assert_close(logits, by_hand)
    wanted = torch.stack([row[: int(n)].max(0).values for row, n in zip(logits, mask.sum(1), strict=True)])
    torch.testing.assert_close(head.max_logits(states, mask), wanted)


def test_saturate_by_hand_and_after_the_maximum():
    assert saturate(torch.tensor([-3.0, 0.0, math.e - 1])).tolist() == pytest.approx([0, 0, 1])
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(saturate(logits.max(1).values), torch.log1p(F.relu(logits)).max(1).values)


def test_bottleneck_by_hand_and_without_gradient_to_the_embeddings():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]], requires_grad=True)
    pooled = torch.tensor([[math.log(2.0), math.log(1.0), math.log(1.0)]], requires_grad=True)
    bag = lexicon_bottleneck(pooled, table)
    assert bag.tolist() == [pytest.approx([0.5 + 1.0, 0.25 + 1.0])]
    bag.sum().backward()
    assert table.grad is None
    assert pooled.grad.abs().sum() > 0


def test_keep_heaviest():
    vectors = torch.tensor([[0.1, 0.5, 0.0, 0.3], [0.0, 0.0, 0.2, 0.0]])
    torch.testing.assert_close(keep_heaviest(vectors, 2), torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.0, 0.0, 0.2, 0.0]]))
    assert torch.equal(keep_heaviest(vectors, 4), vectors)
    assert torch.equal(keep_heaviest(vectors, 9), vectors)
