"""From token states to lexicon vectors: the head, the max pool, the saturation, the bottleneck.

B batch, L tokens, D width, V vocabulary. `max_logits` never keeps the (B, L, V) logits: it works through the batch
in slices, keeps the largest logit of each word and the token that gave it, and sends the gradient back through that
token alone. Where the saturation cut a word off there is nothing to send, so a sparse model's backward pass costs
its active words, not L x V.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_LOGIT = -1e6  # what padded positions count as before the maximum
SLICE_NUMBERS = 2**24  # logits held at once by the pooled head
SPARSE_SHARE = 1 / 8  # backward: below this share of non-zero gradients single rows beat a dense product


class LexiconHead(nn.Module):
    """BERT's masked-language-model head: dense, GELU, LayerNorm, decoder to the vocabulary.

    Args:
        in_features: width of the token states.
        hidden_size: width after the dense layer; the decoder is (V, hidden_size).
        vocab_size: V.
        eps: of the LayerNorm.
    """

    def __init__(self, in_features: int, hidden_size: int, vocab_size: int, eps: float = 1e-12):
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        for layer in (self.dense, self.decoder):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def transform(self, states: Tensor) -> Tensor:
        """(..., in_features) token states to (..., hidden_size) decoder inputs."""
        return self.norm(F.gelu(self.dense(states)))

    def forward(self, states: Tensor) -> Tensor:
        """(..., in_features) token states to (..., V) logits."""
        return self.decoder(self.transform(states))

    def max_logits(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Largest logit of each word over the tokens.

        Args:
            states: (B, L, in_features) token states.
            mask: (B, L) with 0 at padding, or None.

        Returns:
            (B, V), at least float32.
        """
        return max_logits(self.transform(states), self.decoder.weight, self.decoder.bias, mask)


def max_logits(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
    """max over L of (hidden @ weight.T + bias), padded positions left out.

    Args:
        hidden: (B, L, D).
        weight: (V, D).
        bias: (V,).
        mask: (B, L) with 0 at padding, or None.

    Returns:
        (B, V), at least float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return _MaxLogits.apply(hidden, weight, bias, mask)


class _MaxLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = hidden.shape
        vocab = len(weight)
        best = hidden.new_empty((batch, vocab), dtype=torch.promote_types(hidden.dtype, torch.float32))
        token = torch.empty((batch, vocab), dtype=torch.int16 if length < 2**15 else torch.int32, device=hidden.device)
        step = max(1, SLICE_NUMBERS // (length * vocab))
        for start in range(0, batch, step):
            rows = slice(start, min(start + step, batch))
            logits = F.linear(hidden[rows], weight, bias)  # (b, L, V)
            if mask is not None:
                logits.masked_fill_(mask[rows, :, None] == 0, max(PADDING_LOGIT, torch.finfo(logits.dtype).min))
            value, where = logits.max(1)
            best[rows] = value
            token[rows] = where.to(token.dtype)
        ctx.save_for_backward(hidden, weight, token)
        return best

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, token = ctx.saved_tensors
        batch, length, width = hidden.shape
        # Padding never wins unless a text has no token at all, and then its logit is a constant.
        grad_bias = grad.sum(0).to(weight.dtype)
        row, word = grad.nonzero(as_tuple=True)
        if len(row) <= SPARSE_SHARE * grad.numel():
            slot = row * length + token[row, word].long()  # row of hidden.view(B * L, D)
            scale = grad[row, word][:, None]
            # Sums in float32: a frequent word adds up hundreds of rows, which 16 bits would stop counting.
            grad_hidden = grad.new_zeros(batch * length, width)
            grad_hidden.index_add_(0, slot, weight[word] * scale)
            grad_weight = grad.new_zeros(weight.shape)
            grad_weight.index_add_(0, word, hidden.reshape(-1, width)[slot] * scale)
            return grad_hidden.view_as(hidden).to(hidden.dtype), grad_weight.to(weight.dtype), grad_bias, None
        grad_hidden = torch.empty_like(hidden)
        grad_weight = grad.new_zeros(weight.shape)
        step = max(1, SLICE_NUMBERS // (length * len(weight)))
        for start in range(0, batch, step):
            rows = slice(start, min(start + step, batch))
            dense = weight.new_zeros((len(grad[rows]), length, len(weight)))
            dense.scatter_(1, token[rows, None, :].long(), grad[rows, None, :].to(weight.dtype))
            grad_hidden[rows] = dense @ weight
            grad_weight += dense.flatten(0, 1).T @ hidden[rows].flatten(0, 1)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None


def saturate(pooled: Tensor) -> Tensor:
    """log(1 + relu(m)): the term weights, which grow slower than the logits (LexLIP's lexicon weights; SPLADE-max).

    Args:
        pooled: (B, V) largest logit of each word. As log1p and relu do not decrease, saturating the maximum is the
            maximum of the saturated.
    """
    return torch.log1p(F.relu(pooled))


def lexicon_bottleneck(pooled: Tensor, word_embeddings: Tensor) -> Tensor:
    """Continuous bag of words b = softmax(m) E, with E's gradient stopped (LexLIP's lexicon bottleneck).

    Args:
        pooled: (B, V) largest logit of each word.
        word_embeddings: (V, D) table E of the text tower.

    Returns:
        (B, D).
    """
    return F.softmax(pooled, dim=-1) @ word_embeddings.detach()


def keep_heaviest(vectors: Tensor, k: int) -> Tensor:
    """Each row's k heaviest terms, the others set to 0; weights unchanged.

    Args:
        vectors: (B, V) non-negative.
        k: terms to keep.
    """
    if k >= vectors.shape[1]:
        return vectors
    top = vectors.topk(k, dim=1)
    return torch.zeros_like(vectors).scatter_(1, top.indices, top.values)
