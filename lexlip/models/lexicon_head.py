"""From token states to lexicon vectors: the head, the max pool, the saturation, the bottleneck.

B batch, L tokens, D width, V terms. The head multiplies every token with every term and keeps the largest logit of each
term; both poolings of LexLIP follow from that one maximum. `lexlip.ops.fused` takes it without ever holding the
(B, L, V) logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexlip.ops.fused import PADDING_LOGIT
from lexlip.ops.max_logits import max_logits


class LexiconHead(nn.Module):
    """BERT's masked-language-model head: dense, GELU, LayerNorm, decoder to the vocabulary.

    Args:
        in_features: width of the token states.
        hidden_size: width after the dense layer; the decoder is (V, hidden_size).
        vocab_size: V.
        eps: of the LayerNorm.
        restricted: whether some terms are never active; `inactive`, (V,) bool, then says which.
        activation: how logits become weights, see `saturate`.
    """

    method: str = "auto"  # how the maximum is taken, see `max_logits`
    inactive: Tensor | None

    def __init__(
        self, in_features: int, hidden_size: int, vocab_size: int, eps: float = 1e-12, restricted: bool = False,
        activation: str = "log1p",
    ):  # fmt: skip
        super().__init__()
        self.activation = activation
        self.register_buffer("inactive", torch.zeros(vocab_size, dtype=torch.bool) if restricted else None)
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
        """(B, L, in_features) token states and their (B, L) mask, 0 at padding, to (B, V): each term's largest logit.

        At least float32.
        """
        return self.pool(self.transform(states), mask)

    def term_weights(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """`saturate(max_logits(states, mask), activation)`, in one operation."""
        return self.pool(self.transform(states), mask, saturated=True)

    def pool(self, hidden: Tensor, mask: Tensor | None = None, saturated: bool = False) -> Tensor:
        """`max_logits` of (B, L, hidden_size) decoder inputs, as `method` says; of inactive terms as at padding."""
        best = max_logits(hidden, self.decoder.weight, self.decoder.bias, mask, saturated, self.method, self.activation)
        if self.inactive is None:
            return best
        return best.masked_fill(self.inactive, 0.0 if saturated else PADDING_LOGIT)


def lexicon_bottleneck(
    pooled: Tensor, word_embeddings: Tensor, temperature: float = 1.0, normalised: bool = False
) -> Tensor:
    """(B, V) largest logits m and the text tower's (V, D) table E to (B, D): a continuous bag of words, softmax(m) E.

    E gets no gradient (LexLIP's lexicon bottleneck). Not in the paper: m is divided by `temperature`, and with
    `normalised` each bag gets the length sqrt(D), which LayerNorm gives the decoder's other inputs. An average over
    many words is thousands of times shorter, and a decoder that starts from nothing does not find it.
    """
    bag = F.softmax(pooled / temperature, dim=-1) @ word_embeddings.detach()
    return F.normalize(bag, dim=-1) * bag.shape[-1] ** 0.5 if normalised else bag


def keep_heaviest(vectors: Tensor, k: int) -> Tensor:
    """Of (..., V) non-negative vectors the k heaviest terms, weights unchanged; the others become 0."""
    if k >= vectors.shape[-1]:
        return vectors
    top = vectors.topk(k, dim=-1)
    return torch.zeros_like(vectors).scatter(-1, top.indices, top.values)
