"""Attention with a trained bias against the formula in float64."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lexlip.ops.attention import biased_attention

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def formula(q, k, v, bias):
    return (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


def inputs(batch, heads, length, width, dtype=torch.float32, device="cpu"):
    """As a tower makes them: parts of one (B, L, 3, H, D) product."""
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, length, 3, heads, width, generator=g).to(device, dtype).requires_grad_()
    bias = torch.randn(1, heads, length, length, generator=g).to(device, dtype).requires_grad_()
    return qkv, bias


def run(function, qkv, bias):
    out = function(*qkv.permute(2, 0, 3, 1, 4).unbind(0), bias)
    return out, *torch.autograd.grad(out.square().sum(), (qkv, bias))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 2, 5, 8), (2, 3, 37, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients(shape, dtype, device):
    qkv, bias = inputs(*shape, dtype, device)
    wanted = run(formula, *(x.detach().double().requires_grad_() for x in (qkv, bias)))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 0.03}[dtype]
    rounding = 1e-6
    if shape[2] == 1:  # a logit's gradient is a difference of two equal products, of the upstream one, 2 out, and v
        rounding = torch.finfo(dtype).eps * float(2 * wanted[0].norm() * qkv.detach().double()[:, :, 2].norm())
    for ours, theirs in zip(run(biased_attention, qkv, bias), wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm() + rounding


def test_no_matrix_of_all_samples_is_kept():
    """What backward is handed: four tensors, none of them (B, H, L, L)."""
    qkv, bias = inputs(4, 2, 9, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        biased_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), bias)
    assert sorted(kept) == sorted([(4, 2, 9, 8)] * 3 + [(1, 2, 9, 9)])


def test_a_bias_of_another_precision_follows_the_states():
    qkv, bias = inputs(2, 2, 5, 8, torch.bfloat16)
    wide = bias.detach().float().requires_grad_()
    out, _, grad = run(biased_attention, qkv, wide)
    assert out.dtype == torch.bfloat16 and grad.dtype == torch.float32
    assert torch.equal(out, run(biased_attention, qkv, bias)[0])


def test_checkpointing_and_compiling_change_no_number():
    qkv, bias = inputs(2, 2, 5, 8)
    wanted = run(biased_attention, qkv, bias)
    ways = [
        lambda *given: checkpoint(biased_attention, *given, use_reentrant=False),
        torch.compile(biased_attention, backend="aot_eager", fullgraph=True),
    ]
    for way in ways:
        for ours, theirs in zip(run(way, qkv, bias), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_dropout_drops():
    torch.manual_seed(0)
    qkv, bias = inputs(2, 2, 50, 8)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    sums = biased_attention(q, k, torch.ones_like(q), bias, dropout=0.5).detach()
    assert sums.std() > 0.01 and sums.mean() == pytest.approx(1, abs=0.1)
