"""The pooled head against the reference's (B, L, V) maximum in float64, and the small functions by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from lexlip.errors import ConfigError
from lexlip.models.lexicon_head import LexiconHead, keep_heaviest, lexicon_bottleneck
from lexlip.models.lexlip import LexLIP
from lexlip.ops import fused
from lexlip.ops.max_logits import METHODS, max_logits, saturate
from lexlip.train.build import build_model
from lexlip.train.config import Config

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
SHAPES = [(1, 1, 1, 1), (5, 1, 3, 7), (3, 7, 5, 11), (7, 13, 6, 101)]  # (B, L, D, V)


def reference(hidden, weight, bias, mask=None, saturated=False):
    logits = hidden @ weight.T + bias
    if mask is not None:
        logits = logits.masked_fill(mask[:, :, None] == 0, -1e6)
    best = logits.max(1).values
    return torch.log1p(torch.relu(best)) if saturated else best


def inputs(batch, length, width, vocab, dtype=torch.float32, padded=True, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, width), (vocab, width), (vocab,))
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype) for shape in shapes]
    mask = None
    if padded:
        lengths = torch.randint(1, length + 1, (batch,), generator=g)
        mask = (torch.arange(length)[None, :] < lengths[:, None]).long().to(device)
    return [tensor.requires_grad_() for tensor in tensors], mask


def gradients(function, tensors, upstream, *arguments):
    value = function(*tensors, *arguments)
    return value, torch.autograd.grad((value * upstream).sum(), tensors)


def doubles(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_same(one, two, tolerance=1e-5):
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of two texts and a few words, so that neither divides what the tests give."""
    monkeypatch.setattr(fused, "TILE_TOKENS", 14)
    monkeypatch.setattr(fused, "TILE_NUMBERS", {"cpu": 60, "cuda": 60})


@pytest.mark.parametrize("method", ["auto", "fused", "textbook"])
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_values_and_all_gradients_are_the_reference_s(small_tiles, shape, padded, density, saturated, method):
    batch, length, width, vocab = shape
    tensors, mask = inputs(batch, length, width, vocab, padded=padded)
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(batch, vocab, generator=g) * (torch.rand(batch, vocab, generator=g) < density)
    value, grads = gradients(max_logits, tensors, upstream, mask, saturated, method)
    wanted, wanted_grads = gradients(reference, doubles(tensors), upstream.double(), mask, saturated)
    assert value.dtype == torch.float32
    assert_same([value, *grads], [wanted, *wanted_grads])


@pytest.mark.parametrize("tokens", [1, 30, 10**6])
@pytest.mark.parametrize("numbers", [1, 500, 10**9])
def test_no_size_of_tile_changes_anything(monkeypatch, tokens, numbers):
    tensors, mask = inputs(7, 13, 6, 101)
    upstream = torch.randn(7, 101, generator=torch.Generator().manual_seed(2))
    wanted, wanted_grads = gradients(max_logits, tensors, upstream, mask)
    monkeypatch.setattr(fused, "TILE_TOKENS", tokens)
    monkeypatch.setattr(fused, "TILE_NUMBERS", {"cpu": numbers})
    value, grads = gradients(max_logits, tensors, upstream, mask)
    assert_same([value, *grads], [wanted, *wanted_grads], 1e-6)


@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_gradient_no_token_is_looked_for_and_the_values_are_the_same(small_tiles, padded, saturated, dtype):
    tensors, mask = inputs(7, 13, 6, 101, dtype, padded)
    wanted = max_logits(*tensors, mask, saturated)
    with torch.no_grad():
        assert torch.equal(max_logits(*tensors, mask, saturated), wanted)
    fixed = [tensor.detach() for tensor in tensors]
    assert torch.equal(max_logits(*fixed, mask, saturated), wanted)
    value, token = fused.pooled(*fixed, mask, saturated, False)
    assert torch.equal(value, wanted) and token.numel() == 0


def test_a_mask_of_ones_is_no_mask():
    tensors, _ = inputs(7, 13, 6, 101)
    upstream = torch.randn(7, 101, generator=torch.Generator().manual_seed(2))
    wanted, wanted_grads = gradients(max_logits, tensors, upstream)
    value, grads = gradients(max_logits, tensors, upstream, torch.ones(7, 13))
    assert all(torch.equal(a, b) for a, b in zip([value, *grads], [wanted, *wanted_grads], strict=True))


def test_a_text_of_padding_alone_needs_no_token_either():
    tensors, mask = inputs(3, 4, 5, 6)
    mask[1] = 0
    with torch.no_grad():
        value = max_logits(*tensors, mask)
    assert torch.equal(value[1], torch.full((6,), fused.PADDING_LOGIT))
    assert torch.equal(value, max_logits(*tensors, mask))


def test_double_precision_stays_double():
    tensors, mask = inputs(2, 3, 4, 5, torch.float64)
    upstream = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for saturated in (False, True):
        value, grads = gradients(max_logits, tensors, upstream, mask, saturated)
        assert value.dtype == torch.float64
        wanted, wanted_grads = gradients(reference, tensors, upstream, mask, saturated)
        assert_same([value, *grads], [wanted, *wanted_grads], 1e-12)
        assert torch.autograd.gradcheck(lambda *t, s=saturated: max_logits(*t, mask, s), tensors)


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


def test_a_word_that_the_saturation_cuts_off_gets_no_gradient():
    hidden = torch.tensor([[[1.0], [2.0]]], requires_grad=True)
    weight = torch.tensor([[1.5], [-1.0], [0.0]], requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    value = max_logits(hidden, weight, bias, saturated=True)
    assert value.tolist() == [[pytest.approx(math.log(4)), 0.0, 0.0]]
    value.sum().backward()
    assert hidden.grad.tolist() == [[[0.0], [1.5 / 4]]]
    assert weight.grad.tolist() == [[2 / 4], [0.0], [0.0]]
    assert bias.grad.tolist() == [1 / 4, 0.0, 0.0]


def test_a_tie_goes_to_the_lowest_token():
    hidden = torch.ones(1, 4, 2, requires_grad=True)  # every token gives the same logit
    weight = torch.eye(2, requires_grad=True)
    max_logits(hidden, weight, torch.zeros(2, requires_grad=True)).sum().backward()
    assert hidden.grad.tolist() == [[[1, 1], [0, 0], [0, 0], [0, 0]]]
    assert weight.grad.tolist() == [[1, 1], [1, 1]]


def test_where_padding_is_largest_the_value_is_a_constant():
    """A text without any token, and a token below -1e6."""
    tensors = [torch.ones(2, 3, 2), torch.full((4, 2), -1e7), torch.zeros(4)]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    mask = torch.tensor([[0, 0, 0], [1, 0, 0]])
    value, grads = gradients(max_logits, tensors, torch.ones(2, 4), mask)
    assert value.tolist() == [[-1e6] * 4] * 2
    assert [float(grad.abs().sum()) for grad in grads] == [0, 0, 0]


@pytest.mark.parametrize("saturated", [False, True])
def test_infinity_wins_and_not_a_number_is_not_hidden(saturated):
    hidden = torch.tensor([[[1.0], [math.inf], [2.0]], [[1.0], [math.nan], [2.0]], [[3.0], [-math.inf], [2.0]]])
    value = max_logits(hidden, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), None, saturated)
    wanted = reference(hidden, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), None, saturated)
    torch.testing.assert_close(value, wanted, equal_nan=True)
    assert value[0, 0] == math.inf and value[1].isnan().all() and value[2, 1] == math.inf


def test_a_loss_that_is_no_number_reaches_the_weights():
    tensors, _ = inputs(2, 3, 4, 5)
    with torch.no_grad():
        tensors[0][1, 2, 0] = math.nan
    for saturated in (False, True):
        _, grads = gradients(max_logits, tensors, torch.ones(2, 5), None, saturated)
        assert grads[1].isnan().any()


def test_frozen_parts_get_no_gradient_and_cost_none(monkeypatch):
    widths = []
    original = fused._weighted_rows
    monkeypatch.setattr(fused, "_weighted_rows", lambda *given: widths.append(given[-1]) or original(*given))
    (hidden, weight, bias), _ = inputs(2, 3, 4, 5)
    max_logits(hidden, weight.detach(), bias.detach()).sum().backward()
    assert widths == [6] and hidden.grad is not None
    widths.clear()
    max_logits(hidden.detach(), weight, bias).sum().backward()
    assert widths == [5] and weight.grad is not None and bias.grad is not None


def test_an_unknown_method_is_refused():
    (hidden, weight, bias), _ = inputs(1, 2, 3, 4)
    with pytest.raises(ValueError, match="lexicon_head='quick'.*auto, fused, textbook"):
        max_logits(hidden, weight, bias, method="quick")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_16_bits_and_returns_float32(dtype, saturated, device):
    tensors, mask = inputs(3, 5, 8, 31, device=device)
    upstream = torch.randn(3, 31, generator=torch.Generator().manual_seed(4)).to(device)
    wanted, wanted_grads = gradients(reference, tensors, upstream, mask, saturated)
    with torch.autocast(device, dtype=dtype):
        value, grads = gradients(max_logits, tensors, upstream, mask, saturated)
    assert value.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [torch.float32] * 3
    assert not torch.equal(value, wanted)  # 16 bits were used
    torch.testing.assert_close(value, wanted, rtol=0.02, atol=0.05)
    for grad, want in zip(grads, wanted_grads, strict=True):
        # A near tie may go to the other token, so the whole is compared, not each number.
        assert (grad - want).norm() < 0.25 * want.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_many_small_contributions_to_one_word_are_not_lost_in_16_bits(device):
    """1,024 equal gradients meet in one row of the decoder; added up in bfloat16 they would stop at 256."""
    hidden = torch.ones(1024, 1, 2, requires_grad=True, device=device)
    weight, bias = (torch.zeros(*shape, requires_grad=True, device=device) for shape in ((3, 2), (3,)))
    with torch.autocast(device, dtype=torch.bfloat16):
        value = max_logits(hidden, weight, bias)
    value[:, 1].sum().backward()
    assert weight.grad.tolist() == [[0, 0], [1024, 1024], [0, 0]]
    assert bias.grad.tolist() == [0, 1024, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_many_words_of_one_token_are_not_lost_in_16_bits(device):
    """Likewise for an image's token that gives the largest logit of very many words."""
    hidden = torch.zeros(1, 1, 2, requires_grad=True, device=device)
    weight, bias = (torch.ones(*shape, requires_grad=True, device=device) for shape in ((1024, 2), (1024,)))
    with torch.autocast(device, dtype=torch.bfloat16):
        value = max_logits(hidden, weight, bias)
    value.sum().backward()
    assert hidden.grad.tolist() == [[[1024, 1024]]]


def test_gradient_checkpointing_changes_no_number():
    tensors, mask = inputs(3, 5, 8, 31)
    upstream = torch.randn(3, 31, generator=torch.Generator().manual_seed(5))
    wanted, wanted_grads = gradients(max_logits, tensors, upstream, mask)
    twice = lambda *given: checkpoint(max_logits, *given, use_reentrant=False)
    value, grads = gradients(twice, tensors, upstream, mask)
    assert all(torch.equal(a, b) for a, b in zip([value, *grads], [wanted, *wanted_grads], strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_break(autocast, fresh_compiler):
    torch.manual_seed(0)
    head, mask = LexiconHead(6, 8, 17), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    states = torch.randn(2, 4, 6)
    results = []
    for run in (head.term_weights, torch.compile(head.term_weights, backend="aot_eager", fullgraph=True)):
        head.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weights = run(states, mask)
        weights.square().sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            assert torch.equal(run(states, mask), weights)
        results.append([weights.detach(), *(parameter.grad.clone() for parameter in head.parameters())])
    assert_same(*results)


def test_one_compiled_graph_serves_every_size(fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(max_logits, backend=counter, fullgraph=True, dynamic=True)
    for batch, length, width, vocab in [(7, 13, 6, 101), (3, 9, 5, 40), (4, 8, 7, 23)]:
        tensors, mask = inputs(batch, length, width, vocab)
        upstream = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(5))
        wanted, wanted_grads = gradients(max_logits, tensors, upstream, mask)
        value, grads = gradients(run, tensors, upstream, mask)
        assert_same([value, *grads], [wanted, *wanted_grads])
    assert counter.frame_count == 1


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
    torch.testing.assert_close(head.term_weights(states, mask), saturate(wanted))
    head.method = "textbook"
    torch.testing.assert_close(head.term_weights(states, mask), saturate(wanted))


@pytest.mark.parametrize("method", METHODS)
def test_the_key_reaches_both_heads(make_keys, method):
    model = build_model(LexLIP, Config.checked(make_keys(lexicon_head=method)))
    assert (model.text_head.method, model.image_head.method) == (method, method)
    with pytest.raises(ConfigError, match="lexicon_head='quick'.*auto, fused, textbook"):
        Config.checked(make_keys(lexicon_head="quick"))


@pytest.mark.parametrize("saturated", [False, True])
def test_an_unknown_activation_is_told(saturated):
    tensors = torch.ones(1, 2, 3), torch.ones(4, 3), torch.ones(4)
    with pytest.raises(ConfigError, match="activation='relu'; it must be one of log1p, log1p_twice"):
        max_logits(*tensors, None, saturated, "auto", "relu")
    with pytest.raises(ConfigError, match="activation='log1p_relu'"):
        saturate(torch.ones(2), "log1p_relu")


def test_saturate_by_hand_and_after_the_maximum():
    assert saturate(torch.tensor([-3.0, 0.0, math.e - 1])).tolist() == pytest.approx([0, 0, 1])
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(saturate(logits.max(1).values), torch.log1p(F.relu(logits)).max(1).values)
    twice = saturate(torch.tensor([-3.0, 0.0, math.exp(math.e - 1) - 1]), "log1p_twice")
    assert twice.tolist() == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_the_second_logarithm_is_after_the_maximum(method):
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 4), (9, 4), (9,))]
    wanted = torch.log1p(torch.log1p(F.relu(tensors[0] @ tensors[1].T + tensors[2]).amax(1)))
    value = max_logits(*tensors, None, True, method, "log1p_twice")
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), tensors), torch.autograd.grad(wanted.sum(), tensors))
    best = max_logits(*tensors, None, False, method, "log1p_twice")
    torch.testing.assert_close(saturate(best, "log1p_twice"), wanted)


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
    assert torch.equal(keep_heaviest(vectors[None], 2)[0], keep_heaviest(vectors, 2))
