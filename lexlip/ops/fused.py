"""The pooled lexicon head as one operator: the largest logit of each term, and the token that gave it.

B batch, L tokens, D width, V vocabulary, N pairs (b, v) with a gradient. The (B, L, V) logits never exist: they are
made a tile at a time and only the maximum is kept. Backward follows the kept token: the gradient of one pair is two
rows of D numbers, so N x D multiplications replace two dense products over B x L x V x D, and a term that the
saturation cut off costs nothing.

On NVIDIA GPUs with 16-bit states `lexlip.ops.fused_triton` does the work; everywhere else it is torch's own products
and its embedding bag, a sum of weighted table rows.

As a registered operator it is one node for `torch.compile` and needs nothing special for autocast, gradient
checkpointing or DistributedDataParallel. Sums are taken in a fixed order: equal inputs give equal gradients.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING_LOGIT = -1e6  # what padded positions count as before the maximum
NO_TOKEN = -1  # a pair whose largest logit is padding: a constant, so without gradient
_TRITON = find_spec("triton") is not None
TILE_TOKENS = 2048  # rows of a tile of logits
TILE_NUMBERS = {"cpu": 2**21, "cuda": 2**26}  # of a tile: on the CPU as many as its cache holds


@torch.library.custom_op(
    "lexlip::max_logits",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bias, Tensor? mask, bool saturated, bool with_tokens)"
    " -> (Tensor, Tensor)",
)
def pooled(hidden, weight, bias, mask, saturated, with_tokens):
    """max over L of (hidden @ weight.T + bias) and its token.

    Args:
        hidden, weight, bias, mask, saturated: as in `max_logits`; the product is taken in hidden's dtype.
        with_tokens: must be True if a gradient is to follow; without, torch takes the maximum alone, much faster.

    Returns:
        (B, V) values, at least float32, and (B, V) tokens, int16 or int32: the lowest one among equals, `NO_TOKEN`
        where padding is largest. Where a logit is NaN the value is NaN too, and the token arbitrary. Without
        `with_tokens` the second tensor is empty.
    """
    if _in_triton(hidden):
        from lexlip.ops import fused_triton

        value, token = fused_triton.pooled(hidden, weight, bias, mask, saturated)
        return value, token if with_tokens else token.new_empty(0)
    return _pooled(hidden, weight, bias, mask, saturated, with_tokens)


@pooled.register_fake
def _(hidden, weight, bias, mask, saturated, with_tokens):
    return outputs(hidden, weight, with_tokens)


@torch.library.custom_op(
    "lexlip::max_logits_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor? saturated, Tensor token, Tensor hidden, Tensor weight, Tensor bias, bool[2] wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def pooled_backward(grad, saturated, token, hidden, weight, bias, wanted):
    """Gradients of `pooled` with respect to hidden, weight and bias, each in its tensor's dtype.

    Args:
        grad: (B, V) gradient of the values.
        saturated: the values, if they were saturated, else None.
        token: (B, V), as `pooled` gave them.
        wanted: whether the gradients of hidden and of weight are needed; one that is not is empty.
    """
    grad = grad.masked_fill(token == NO_TOKEN, 0)
    if saturated is not None:  # d log(1 + m) / dm = 1 / (1 + m) = exp(-value); NaN passes
        grad = (grad * torch.exp(-saturated)).masked_fill_(saturated <= 0, 0)
    grad_bias = grad.sum(0).to(bias.dtype)
    if _in_triton(hidden):
        from lexlip.ops import fused_triton

        grad_hidden, grad_weight = fused_triton.pooled_backward(grad, token, hidden, weight, wanted)
    else:
        grad_hidden, grad_weight = _pooled_backward(grad, token, hidden, weight, wanted)
    return grad_hidden, grad_weight, grad_bias


@pooled_backward.register_fake
def _(grad, saturated, token, hidden, weight, bias, wanted):
    like = (hidden if wanted[0] else hidden.new_empty(0), weight if wanted[1] else weight.new_empty(0), bias)
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like)


def _keep_for_backward(ctx, inputs, output):
    hidden, weight, bias, _, saturated, _ = inputs
    value, token = output
    ctx.mark_non_differentiable(token)
    ctx.save_for_backward(value if saturated else None, token, hidden, weight, bias)


def _backward(ctx, grad, _):
    wanted = [bool(need) for need in ctx.needs_input_grad[:2]]
    hidden, weight, bias = pooled_backward(grad, *ctx.saved_tensors, wanted)
    return hidden if wanted[0] else None, weight if wanted[1] else None, bias, None, None, None


pooled.register_autograd(_backward, setup_context=_keep_for_backward)


def _in_triton(hidden: Tensor) -> bool:
    if not hidden.is_cuda or hidden.dtype not in (torch.bfloat16, torch.float16) or torch.version.hip:
        return False
    return _TRITON and torch.cuda.get_device_capability(hidden.device) >= (8, 0)


def outputs(hidden: Tensor, weight: Tensor, with_tokens: bool = True) -> tuple[Tensor, Tensor]:
    """What `pooled` returns, not filled in yet."""
    shape = (hidden.shape[0], weight.shape[0])  # `len` would make a number of a symbolic size
    value = hidden.new_empty(shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
    numbers = torch.int16 if hidden.shape[1] < 2**15 else torch.int32
    return value, hidden.new_empty(shape if with_tokens else 0, dtype=numbers)


def _pooled(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, saturated: bool, with_tokens: bool):
    batch, length, width = hidden.shape
    value, token = outputs(hidden, weight, with_tokens)
    # Texts come sorted by length, so often none is padded. Asking this of an accelerator would wait for it.
    if mask is not None and mask.device.type == "cpu" and bool(mask.all()):
        mask = None
    rows = min(batch, max(1, TILE_TOKENS // length))
    terms = min(len(weight), max(1, TILE_NUMBERS.get(hidden.device.type, 2**26) // (rows * length)))
    scratch = hidden.new_empty(rows * length * terms)
    padding = max(PADDING_LOGIT, torch.finfo(hidden.dtype).min)
    # The terms outside, so that a tile of the decoder matrix is read once.
    for v in range(0, len(weight), terms):
        columns, shift = weight[v : v + terms].to(hidden.dtype).T, bias[v : v + terms].to(hidden.dtype)
        for b in range(0, batch, rows):
            states = hidden[b : b + rows].reshape(-1, width)
            logits = scratch[: len(states) * len(shift)].view(len(states), len(shift))
            torch.addmm(shift, states, columns, out=logits)
            logits = logits.view(-1, length, len(shift))  # (b, L, v)
            if mask is not None:
                logits.masked_fill_(mask[b : b + rows, :, None] == 0, padding)
            if with_tokens:
                best, where = logits.max(1)
                token[b : b + rows, v : v + terms] = where
            else:
                best = logits.amax(1)
            value[b : b + rows, v : v + terms] = torch.log1p(F.relu(best.to(value.dtype))) if saturated else best
    if with_tokens and mask is not None:
        token.masked_fill_(mask.gather(1, token.long()) == 0, NO_TOKEN)
    return value, token


def _pooled_backward(grad: Tensor, token: Tensor, hidden: Tensor, weight: Tensor, wanted: list[bool]):
    batch, length, width = hidden.shape
    term, row = grad.T.nonzero(as_tuple=True)  # (N,) each, by term
    state = row * length + token[row, term]  # row of hidden as (B * L, D)
    scale = grad[row, term]
    grad_hidden, grad_weight = hidden.new_empty(0), weight.new_empty(0)
    if wanted[1]:
        states = hidden.reshape(-1, width).to(grad.dtype)
        grad_weight = _weighted_rows(states, state, scale, term, len(weight)).to(weight.dtype)
    if wanted[0]:
        state, order = state.sort(stable=True)
        table = weight.to(grad.dtype)
        grad_hidden = _weighted_rows(table, term[order], scale[order], state, batch * length)
        grad_hidden = grad_hidden.view_as(hidden).to(hidden.dtype)
    return grad_hidden, grad_weight


def _weighted_rows(table: Tensor, source: Tensor, scale: Tensor, target: Tensor, size: int) -> Tensor:
    """(size, D): row t is the sum of scale[n] * table[source[n]] over all n with target[n] = t; target ascends."""
    counts = torch.bincount(target, minlength=size)
    return F.embedding_bag(source, table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=scale)
