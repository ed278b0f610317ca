"""`lexlip.ops.fused` on NVIDIA GPUs: one matrix product that keeps the largest number of each group of rows.

B batch, L tokens, D width, V vocabulary, T = B x L tokens of the whole batch.

Forward: a program makes a (terms, tokens) tile of logits in registers and takes the maximum per term over each
sample that the tile meets. Tiles run over the tokens of all samples laid end to end: with 197 tokens a sample, tiles
per sample would be a quarter padding. The maxima of a sample's tiles are merged by a 64-bit atomic maximum, whose high
half orders like the logit and whose low half prefers the lower token. A maximum does not depend on the order, so the
result is deterministic. Terms are the rows of the tile because a row's maximum lies in few threads; a column's would be
shuffled through the whole block.

Backward: the decoder matrix gathers one state per term and sample. The states need the reverse, all terms of a token:
pairs (b, v) are sorted by token, and each state sums its own. There are no atomics, so sums are in a fixed order; no
number travels to the host. A pair without gradient loads nothing.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# (Triton's annotations do not describe what its language accepts.)
import torch
import triton
import triton.language as tl
from torch import Tensor

from lexlip.ops import fused

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # an older Triton: tiles are loaded by pointers
    TensorDescriptor = None

PADDING_LOGIT = tl.constexpr(fused.PADDING_LOGIT)
SIGN_OFF = tl.constexpr(0x7FFFFFFF)
NOT_A_NUMBER = tl.constexpr(0x7FC00000)  # as an integer larger than infinity
LOWEST = -(2**63)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _best_kernel(
    hidden, weight, bias, mask, best, tokens, length, vocab,
    WIDTH: tl.constexpr, LONG: tl.constexpr, HAS_MASK: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """best (B, V) int64: packed maximum and token; holds `LOWEST` before. LONG only tells the tuner sizes apart."""
    # Groups of term tiles walk along the tokens together, so that both operands' tiles are met again in the L2 cache.
    program = tl.program_id(0)
    tiles_v, tiles_t = tl.cdiv(vocab, BLOCK_V), tl.cdiv(tokens, BLOCK_T)
    group = program // (GROUP * tiles_t)
    rows = min(tiles_v - group * GROUP, GROUP)
    first_v = (group * GROUP + program % (GROUP * tiles_t) % rows) * BLOCK_V
    first_t = program % (GROUP * tiles_t) // rows * BLOCK_T

    v = first_v + tl.arange(0, BLOCK_V)
    t = first_t + tl.arange(0, BLOCK_T)
    shift = tl.load(bias + v, mask=v < vocab, other=0.0).to(tl.float32)
    logits = tl.zeros((BLOCK_V, BLOCK_T), tl.float32) + shift[:, None]
    for first_d in range(0, WIDTH, BLOCK_D):
        if DESCRIPTORS:
            terms = weight.load([first_v, first_d])
            states = hidden.load([first_t, first_d])
        else:
            d = first_d + tl.arange(0, BLOCK_D)
            inside = d[None, :] < WIDTH
            at = v.to(tl.int64)[:, None] * WIDTH + d[None, :]
            terms = tl.load(weight + at, mask=inside & (v < vocab)[:, None], other=0.0)
            at = t.to(tl.int64)[:, None] * WIDTH + d[None, :]
            states = tl.load(hidden + at, mask=inside & (t < tokens)[:, None], other=0.0)
        logits = tl.dot(terms, states.T, logits)

    if HAS_MASK:
        keep = tl.load(mask + t, mask=t < tokens, other=0) != 0
        logits = tl.where(keep[None, :], logits, PADDING_LOGIT)
    column = tl.arange(0, BLOCK_T)
    for b in range(first_t // length, (min(first_t + BLOCK_T, tokens) - 1) // length + 1):
        start = b * length - first_t  # the sample's first column, before the tile's where it is below 0
        inside = ((column >= start) & (column < start + length))[None, :]
        value = tl.reduce(tl.where(inside, logits, float("-inf")), 1, _larger)
        wins = inside & (logits == value[:, None])
        token = tl.min(tl.where(wins, column[None, :], BLOCK_T), axis=1)
        token = tl.where(token < BLOCK_T, token - start, 0)  # NaN equals nothing
        bits = (value + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0, as both are equal
        bits = tl.where(value == value, bits, NOT_A_NUMBER)
        order = bits ^ ((bits >> 31) & SIGN_OFF)  # integers in the order of the floats
        packed = (order.to(tl.int64) << 32) | (token ^ SIGN_OFF).to(tl.int64)
        tl.atomic_max(best + tl.cast(b, tl.int64) * vocab + v, packed, mask=v < vocab, sem="relaxed")


@triton.jit
def _unpack_kernel(
    best, mask, value, token, length, vocab,
    HAS_MASK: tl.constexpr, SATURATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = b * vocab + v
    packed = tl.load(best + at, mask=v < vocab, other=0)
    order = (packed >> 32).to(tl.int32)
    largest = (order ^ ((order >> 31) & SIGN_OFF)).to(tl.float32, bitcast=True)
    where = (packed & SIGN_OFF).to(tl.int32) ^ SIGN_OFF
    if HAS_MASK:
        keep = tl.load(mask + b * length + where, mask=v < vocab, other=1) != 0
        where = tl.where(keep, where, -1)
    if SATURATED:
        # log(1 + m), exact for small m too (Kahan): the rounding of 1 + m is divided out.
        positive = tl.where(largest <= 0, 0.0, largest)
        sum = 1.0 + positive
        plain = (sum == 1.0) | (sum == float("inf"))
        ratio = positive / tl.where(plain, 1.0, sum - 1.0)
        largest = tl.where(plain, positive, tl.log(sum) * ratio)
    tl.store(value + at, largest, mask=v < vocab)
    tl.store(token + at, where.to(token.dtype.element_ty), mask=v < vocab)


@triton.jit
def _weight_kernel(
    grad, token, hidden, out, batch, length, vocab,
    WIDTH: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """out[v] = sum over b of grad[b, v] * hidden[b, token[b, v]]."""
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    for first in range(0, batch, AT_ONCE):
        for step in tl.static_range(AT_ONCE):  # written out, so that several samples are loaded at once
            b = tl.zeros_like(v).to(tl.int64) + first + step
            there = (v < vocab) & (b < batch)
            at = b * vocab + v
            scale = tl.load(grad + at, mask=there, other=0.0)
            state = tl.load(token + at, mask=there, other=0) + b * length
            inside = (scale != 0)[:, None] & (d < WIDTH)[None, :]
            row = tl.load(hidden + state[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
            total += scale[:, None] * row.to(tl.float32)
    at = v.to(tl.int64)[:, None] * WIDTH + d[None, :]
    tl.store(out + at, total, mask=(v < vocab)[:, None] & (d < WIDTH)[None, :])


@triton.jit
def _state_kernel(
    pairs, starts, grad, weight, out, vocab,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over its pairs (b, v) of grad[b, v] * weight[v]; they are pairs[starts[t]:starts[t + 1]]."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    stop = tl.load(starts + t + 1)
    for first in range(tl.load(starts + t), stop, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        pair = tl.load(pairs + n, mask=n < stop, other=0)
        scale = tl.load(grad + pair, mask=n < stop, other=0.0)
        inside = (n < stop)[:, None] & (d < WIDTH)[None, :]
        row = tl.load(weight + (pair % vocab)[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
        total += scale[:, None] * row.to(tl.float32)
    tl.store(out + t * WIDTH + d, tl.sum(total, axis=0), mask=d < WIDTH)


def _shape_descriptors(arguments: dict) -> None:
    if arguments["DESCRIPTORS"]:
        arguments["weight"].block_shape = [arguments["BLOCK_V"], arguments["BLOCK_D"]]
        arguments["hidden"].block_shape = [arguments["BLOCK_T"], arguments["BLOCK_D"]]


def _best_config(terms: int, tokens: int, stages: int, warps: int) -> triton.Config:
    blocks = {"BLOCK_V": terms, "BLOCK_T": tokens, "BLOCK_D": 64, "GROUP": 8}
    return triton.Config(blocks, num_stages=stages, num_warps=warps, pre_hook=_shape_descriptors)


_SIZES = ((128, 256, 3, 8), (128, 256, 4, 8), (256, 128, 3, 8), (128, 128, 4, 8), (128, 128, 3, 4), (128, 64, 4, 4))
# The products of one logit are added in the same order whatever the tile, so tuning changes no result.
_tuned_best_kernel = triton.autotune(
    [_best_config(*sizes) for sizes in _SIZES],
    key=["vocab", "WIDTH", "LONG", "HAS_MASK", "DESCRIPTORS"],
)(_best_kernel)


def pooled(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, saturated: bool) -> tuple[Tensor, Tensor]:
    """See `lexlip.ops.fused.pooled`. The first call with sizes of a kind takes longer, since it tunes the tiles."""
    batch, length, width = hidden.shape
    vocab = len(weight)
    hidden, weight = hidden.contiguous(), weight.to(hidden.dtype).contiguous()
    mask = None if mask is None else mask.contiguous().view(torch.uint8 if mask.dtype == torch.bool else mask.dtype)
    best = torch.full((batch, vocab), LOWEST, dtype=torch.int64, device=hidden.device)
    value, token = fused.outputs(hidden, weight)
    states, terms = hidden.view(-1, width), weight
    descriptors = _fit_descriptors(states, terms)
    if descriptors:  # `_shape_descriptors` sets their blocks
        states, terms = (TensorDescriptor.from_tensor(tensor, [1, 1]) for tensor in (states, terms))

    def grid(sizes: dict) -> tuple[int]:
        return (triton.cdiv(vocab, sizes["BLOCK_V"]) * triton.cdiv(batch * length, sizes["BLOCK_T"]),)

    with torch.cuda.device_of(hidden):  # kernels are launched on the current device
        _tuned_best_kernel[grid](
            states, terms, bias, mask, best, batch * length, length, vocab,
            WIDTH=width, LONG=batch * length >= 8192, HAS_MASK=mask is not None, DESCRIPTORS=descriptors,
        )  # fmt: skip
        _unpack_kernel[(triton.cdiv(vocab, 1024), batch)](
            best, mask, value, token, length, vocab,
            HAS_MASK=mask is not None, SATURATED=saturated, BLOCK=1024,
        )  # fmt: skip
    return value, token


def _fit_descriptors(states: Tensor, terms: Tensor) -> bool:
    """Whether both operands' tiles can be fetched by the copy engine of Hopper and later."""
    if TensorDescriptor is None or (states.is_cuda and torch.cuda.get_device_capability(states.device) < (9, 0)):
        return False
    return all(tensor.shape[1] % 8 == 0 and tensor.data_ptr() % 16 == 0 for tensor in (states, terms))


def pooled_backward(
    grad: Tensor, token: Tensor, hidden: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and weight, in their dtypes; `grad` is (B, V) float32, 0 where there is none."""
    batch, length, width = hidden.shape
    vocab = len(weight)
    grad = grad.contiguous()
    grad_hidden, grad_weight = hidden.new_empty(0), weight.new_empty(0)
    if wanted[1]:
        hidden = hidden.contiguous()
        total = torch.empty((vocab, width), dtype=torch.float32, device=hidden.device)
        with torch.cuda.device_of(hidden):
            _weight_kernel[(triton.cdiv(vocab, 64), triton.cdiv(width, 128))](
                grad, token, hidden, total, batch, length, vocab, WIDTH=width, BLOCK_V=64, BLOCK_D=128, AT_ONCE=4
            )
        grad_weight = total.to(weight.dtype)
    if wanted[0]:
        tokens = batch * length
        kind = torch.int16 if tokens < 2**15 else torch.int32  # the shorter the key, the faster the sort
        start = torch.arange(0, tokens, length, dtype=kind, device=grad.device)[:, None]
        state = torch.where(grad != 0, start + token.to(kind), tokens).to(kind).flatten()
        state, pairs = state.sort(stable=True)
        starts = torch.searchsorted(state, torch.arange(tokens + 1, dtype=kind, device=grad.device))
        grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        with torch.cuda.device_of(hidden):
            _state_kernel[(tokens, triton.cdiv(width, 256))](
                pairs, starts, grad, weight.to(hidden.dtype).contiguous(), grad_hidden, vocab,
                WIDTH=width, BLOCK_N=16, BLOCK_D=256,
            )  # fmt: skip
    return grad_hidden, grad_weight
