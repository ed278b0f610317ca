"""Heads on the features of frozen towers: lexicon and dense.

B batch, L image tokens, T word pieces, D width of a tower, W width of the shared space, A terms that may be active.

An image's features and a text's sentence vector are brought into the space of the terms' embeddings, where a product
with all of them gives logits, and log(1 + relu) gives weights (LexLIP's lexicon weights; SPLADE). A text's own word
pieces weigh by themselves besides. Without that the vectors are as good and their words mean nothing: a free expansion
is a code (docs/FROZEN.md has the figures).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexlip.models.frozen.config import FrozenConfig
from lexlip.ops.max_logits import max_logits, saturate

START_SCALE = math.log(1 / 0.05)  # of the learned temperature
IMAGE_BIAS, TEXT_BIAS = -1.0, -2.0  # where the terms' biases start: few are active, and none is dead
WEIGHING_WIDTH = 128  # of the layer that weighs a word piece by its state
IDF_SHARE = 1 / 3  # a word piece's own weight starts at so much of its idf


class Standardise(nn.Module):
    """(..., D) features to zero mean and unit variance by the training images' statistics, then dropout."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.dropout = dropout
        self.mean: Tensor
        self.std: Tensor

    def fit(self, features: Tensor) -> None:
        """Take the statistics of (N, D) features."""
        features = features.float()
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        features = (features.to(self.mean.dtype) - self.mean) / self.std
        return F.dropout(features, self.dropout, self.training)


class DenseHeads(nn.Module):
    """One linear layer a side into a space of `embed_dim`, the reference that teaches and is compared with."""

    def __init__(self, config: FrozenConfig, image_dropout: float = 0.0, text_dropout: float = 0.0):
        super().__init__()
        self.standardise = Standardise(config.image_width, image_dropout)
        self.text_dropout = text_dropout
        self.image = nn.Linear(config.image_width, config.embed_dim)
        self.text = nn.Linear(config.pooled_width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(START_SCALE))

    def encode_image(self, features: Tensor) -> Tensor:
        """(B, L, D) features to (B, embed_dim), not normalised: their tokens' mean, projected."""
        return self.image(self.standardise(features).mean(1)).float()

    def encode_text(self, pooled: Tensor) -> Tensor:
        """(B, pooled_width) sentence vectors to (B, embed_dim), not normalised."""
        return self.text(_dropped(pooled.to(self.text.weight.dtype), self.text_dropout, self.training)).float()


class LexiconHeads(nn.Module):
    """Image head and text head over one table of term embeddings.

    Args:
        config: shapes.
        image_dropout, text_dropout: of the features, in training.

    Attributes:
        term_ids: (A,) ids of the lexicon's terms that may be active, ascending.
        table: (A, W) term embeddings, shared by both sides.
    """

    def __init__(self, config: FrozenConfig, image_dropout: float = 0.0, text_dropout: float = 0.0):
        super().__init__()
        self.config, self.text_dropout = config, text_dropout
        width, terms = config.width, config.terms
        self.register_buffer("term_ids", torch.arange(terms))
        self.term_ids: Tensor
        self.standardise = Standardise(config.image_width, image_dropout)
        self.image = nn.Linear(config.image_width, width)
        self.image_norm = nn.LayerNorm(width)
        self.table = nn.Parameter(torch.randn(terms, width) * width**-0.5)
        self.image_bias = nn.Parameter(torch.full((terms,), IMAGE_BIAS))
        self.own = nn.Parameter(torch.zeros(terms))  # of a text's own word pieces, before softplus
        self.logit_scale = nn.Parameter(torch.tensor(START_SCALE))
        if config.text_head == "contextual":
            self.weigh = nn.Sequential(
                nn.Linear(config.text_width, WEIGHING_WIDTH), nn.GELU(), nn.Linear(WEIGHING_WIDTH, 1)
            )
            self.text = nn.Linear(config.pooled_width, width)
            self.text_norm = nn.LayerNorm(width)
            self.text_bias = nn.Parameter(torch.full((terms,), TEXT_BIAS))

    @torch.no_grad()
    def start(self, term_ids: Tensor, embeddings: Tensor | None, idf: Tensor) -> None:
        """Begin from the words that there are.

        Args:
            term_ids: (A,) the terms that may be active, ascending.
            embeddings: (A, W) of these terms in a text tower, where it is as wide as this space; None: random.
            idf: (A,) logarithm of how many texts there are for each that has the term.
        """
        self.term_ids.copy_(term_ids)
        self.own.copy_(idf * IDF_SHARE)
        if embeddings is not None:
            self.table.copy_(F.normalize(embeddings - embeddings.mean(0), dim=-1))

    def positions(self, terms: Tensor) -> Tensor:
        """(...) ids of word pieces to their positions among the A terms; A for those that may not be active."""
        where = torch.searchsorted(self.term_ids, terms).clamp(max=len(self.term_ids) - 1)
        return torch.where(self.term_ids[where] == terms, where, len(self.term_ids))

    def scattered(self, weights: Tensor) -> Tensor:
        """(B, A) weights of the terms that may be active to (B, V) of all."""
        return weights.new_zeros(len(weights), self.config.vocab_size).index_copy_(1, self.term_ids, weights)

    def encode_image(self, features: Tensor) -> Tensor:
        """(B, L, D) features to (B, A) weights, not normalised: each term's largest logit over the tokens, saturated."""
        hidden = self.image_norm(self.image(self.standardise(features)))
        return max_logits(hidden, self.table, self.image_bias, saturated=True)

    def encode_text(self, terms: Tensor, mask: Tensor, states: Tensor, pooled: Tensor, keep: Tensor | None) -> Tensor:
        """Texts to (B, A) weights, not normalised: what their own word pieces weigh, plus the expansion.

        Args:
            terms, mask: (B, T) word pieces, and where they are.
            states: (B, T, D) of the text tower.
            pooled: (B, pooled_width) sentence vectors.
            keep: (B,) 1 for texts that may be expanded, 0 for the others; None: all.
        """
        dtype = self.text.weight.dtype
        weights = self.weigh(states.to(dtype))[..., 0] + self._own(terms)
        own = self._pooled(F.softplus(weights) * mask, terms)
        hidden = self.text_norm(self.text(_dropped(pooled.to(dtype), self.text_dropout, self.training)))
        expansion = saturate(F.linear(hidden, self.table, self.text_bias))
        return own + (expansion if keep is None else expansion * keep[:, None])

    def _own(self, terms: Tensor) -> Tensor:
        return F.pad(self.own, (0, 1))[self.positions(terms)]

    def _pooled(self, weights: Tensor, terms: Tensor) -> Tensor:
        """(B, T) weights of word pieces to (B, A), the largest of each term."""
        rows = weights.new_zeros(len(weights), len(self.term_ids) + 1)
        return rows.scatter_reduce(1, self.positions(terms), weights, "amax")[:, :-1]


def _dropped(pooled: Tensor, rate: float, training: bool) -> Tensor:
    """Sentence vectors at one length, so that towers of any scale start alike; then dropout."""
    return F.dropout(F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5, rate, training)
