"""How many floating-point operations the matrix products of some work take, the project's own operators included.

torch's counter knows torch's operators and sees nothing inside of others: their formulas are registered here. Only
matrix products are counted, since they are compared with the rate of a product. The head's backward pass is none: it
adds up N x D numbers twice, N at most B x V, where the head's forward product multiplies B x L x V x D.

B batch, H heads, L tokens, D width (of a head, in attention), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import lexlip.ops.attention
import lexlip.ops.fused  # noqa: F401  both register their operators


def products(run: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products that `run` makes, two per multiplication."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@register_flop_formula(torch.ops.lexlip.max_logits)
def _head(hidden, weight, *others, **named) -> int:
    batch, length, width = hidden
    return 2 * batch * length * width * weight[0]


@register_flop_formula(torch.ops.lexlip.biased_attention)
def _attention(q, k, v, *others, **named) -> int:
    """Scores, and values by weights."""
    return 2 * _square(q, k)


@register_flop_formula(torch.ops.lexlip.biased_attention_backward)
def _attention_backward(grad, q, k, v, *others, **named) -> int:
    """The scores again; the gradients of values, weights, queries and keys."""
    return 5 * _square(q, k)


def _square(q, k) -> int:
    """One product of (L, D) with (D, L), or of (L, L) with (L, D), per sample and head."""
    batch, heads, length, width = q
    return 2 * batch * heads * length * k[2] * width
