"""The largest logit of each term over the tokens: the one operation that a lexicon vector is made of.

B batch, L tokens, D width, V vocabulary. `lexlip.ops.fused` never holds the (B, L, V) logits; the reference here does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.ops.fused import PADDING_LOGIT, pooled

METHODS = ("auto", "fused", "textbook")
ACTIVATIONS = ("log1p", "log1p_twice")


def max_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, saturated: bool = False,
    method: str = "auto", activation: str = "log1p",
) -> Tensor:  # fmt: skip
    """max over L of (hidden @ weight.T + bias), padded positions counting as -1e6.

    Args:
        hidden: (B, L, D), L at least 1. Under autocast the product is taken in its dtype.
        weight: (V, D).
        bias: (V,).
        mask: (B, L) with 0 at padding, or None.
        saturated: give `saturate(maximum, activation)`.
        method: "fused" never holds (B, L, V); "textbook", the reference, does; "auto" is fused on CPU and NVIDIA GPU.

    Returns:
        (B, V), at least float32.

    Raises:
        ConfigError: an unknown method or activation.
    """
    _check(activation)
    if method not in METHODS:
        raise ConfigError(f"lexicon_head={method!r}; it must be one of {', '.join(METHODS)}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        if method == "fused" or (method == "auto" and device in ("cpu", "cuda")):
            with_tokens = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight, bias))
            value = pooled(hidden, weight, bias, mask, saturated, with_tokens)[0]
            return torch.log1p(value) if saturated and activation == "log1p_twice" else value
        best = _reference(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype), mask)
        return saturate(best, activation) if saturated else best


def _reference(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    logits = F.linear(hidden, weight, bias)  # (B, L, V)
    if mask is not None:
        padding = max(PADDING_LOGIT, torch.finfo(logits.dtype).min)
        logits = logits.masked_fill(mask[:, :, None] == 0, padding)
    best = logits.max(1).values
    return best.to(torch.promote_types(best.dtype, torch.float32))


def saturate(pooled: Tensor, activation: str = "log1p") -> Tensor:
    """log(1 + relu(m)) of (B, V) largest logits: the term weights, which grow slower (LexLIP; SPLADE-max).

    With the activation "log1p_twice" log(1 + log(1 + relu(m))), as OpenSearch's encoders have it (Shen et al. 2025,
    arXiv 2504.14839). As log1p and relu do not decrease, saturating the maximum is the maximum of the saturated.
    """
    _check(activation)
    weights = torch.log1p(F.relu(pooled))
    return torch.log1p(weights) if activation == "log1p_twice" else weights


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation={activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
