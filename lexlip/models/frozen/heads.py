"""Heads on the features of frozen towers: lexicon and dense.

B batch, L image tokens, T word pieces, D width of a tower, W width of the shared space, A terms that may be active.

An image's features and a text's sentence vector are brought into the space of the terms' embeddings, where a product
with all of them gives logits, and `saturate`, log(1 + relu), gives weights (LexLIP; SPLADE). A text's own word
pieces weigh by themselves besides. Without that the vectors are as good and their words mean nothing: a free expansion
is a code (docs/FROZEN.md has the figures).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.lexicon_head import keep_heaviest
from lexlip.ops.max_logits import max_logits, saturate

START_SCALE = math.log(1 / 0.05)  # of the learned temperature
IMAGE_BIAS, TEXT_BIAS = -1.0, -2.0  # where the terms' biases start: few are active, and none is dead
WEIGHING_WIDTH = 128  # of the layer that weighs a word piece by its state
LEAST_DEVIATION = 1e-6  # of a feature
IDF_SHARE = 1 / 3  # a word piece's own weight starts at so much of its idf
TERM_RATE = 1.5  # what a term alone has learns from few texts: faster than layers that all share, and without decay


class TextBatch(NamedTuple):
    """Texts by their word pieces, and what a frozen text tower says of them where there is one.

    Attributes:
        terms: (B, T) int64.
        mask: (B, T) bool, False at padding.
        states: (B, T, D) of the tokens; pooled: (B, pooled_width) of the texts.
    """

    terms: Tensor
    mask: Tensor
    states: Tensor | None = None
    pooled: Tensor | None = None


class Standardise(nn.Module):
    """(B, L, D) features to zero mean and unit variance by the training images' statistics, then dropout.

    A feature is dropped from all L tokens of an image: what one of them lacks the others would tell.
    """

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.dropout = dropout
        self.mean: Tensor
        self.std: Tensor

    def fit(self, features: Tensor) -> None:
        """Take the statistics of (N, D) features. One that never changes keeps its scale: it tells nothing."""
        features = features.float()
        std = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.std.copy_(torch.where(std > LEAST_DEVIATION, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        features = (features.to(self.mean.dtype) - self.mean) / self.std
        if not self.training:
            return features
        return features * F.dropout(torch.ones_like(features[:, :1]), self.dropout)


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
        mean = features.to(self.standardise.mean.dtype).mean(1, keepdim=True)
        return self.image(self.standardise(mean)[:, 0]).float()

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
        table: (A, W) term embeddings, of texts, and of images where `image_table` is None.
        image_table: (A, W) those of images; starts as a copy.
        rate_factors, without_decay: what the optimiser is told of parameters, see `lexlip.train.optim`.
    """

    method = "auto"  # how the maximum over image tokens is taken, see `max_logits`
    rate_factors = {"table": TERM_RATE, "image_table": TERM_RATE, "image_bias": TERM_RATE, "own": TERM_RATE}
    without_decay = ("table", "image_table")

    def __init__(self, config: FrozenConfig, image_dropout: float = 0.0, text_dropout: float = 0.0):
        super().__init__()
        self.config = config
        width, terms = config.width, config.terms
        self.register_buffer("term_ids", torch.arange(terms))
        self.term_ids: Tensor
        self.standardise = Standardise(config.image_width, image_dropout)
        self.image = nn.Linear(config.image_width, width)
        self.image_norm = nn.LayerNorm(width)
        self.table = nn.Parameter(torch.randn(terms, width) * width**-0.5)
        self.image_table = nn.Parameter(self.table.detach().clone()) if config.separate_tables else None
        self.image_bias = nn.Parameter(torch.full((terms,), IMAGE_BIAS))
        self.own = nn.Parameter(torch.zeros(terms))  # of a text's own word pieces, before softplus
        self.logit_scale = nn.Parameter(torch.tensor(START_SCALE))
        self.text_side: ContextualText | LookupText | TableText = TEXT_SIDES[config.text_head](config, text_dropout)

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
            if self.image_table is not None:
                self.image_table.copy_(self.table)

    @property
    def terms_of_images(self) -> Tensor:
        """(A, W) term embeddings that images are compared with."""
        return self.table if self.image_table is None else self.image_table

    def positions(self, terms: Tensor) -> Tensor:
        """(...) ids of word pieces to their positions among the A terms; A for those that may not be active."""
        where = torch.searchsorted(self.term_ids, terms).clamp(max=len(self.term_ids) - 1)
        return torch.where(self.term_ids[where] == terms, where, len(self.term_ids))

    def scattered(self, weights: Tensor) -> Tensor:
        """(B, A) weights of the terms that may be active to (B, V) of all."""
        return weights.new_zeros(len(weights), self.config.vocab_size).index_copy_(1, self.term_ids, weights)

    def encode_image(self, features: Tensor) -> Tensor:
        """(B, L, D) features to (B, A) weights, not normalised: each term's largest logit, saturated."""
        hidden = self.image_norm(self.image(self.standardise(features)))
        return max_logits(
            hidden, self.terms_of_images, self.image_bias, None, True, self.method, self.config.activation
        )

    def patch_states(self, cells: Tensor, averaged: bool) -> Tensor:
        """(B, H, W, D) features of patches to (B, H, W, W') of which `term_logits` makes logits.

        Args:
            averaged: the image's features are the mean of these. Then all up to the LayerNorm is linear, and so is its
                centring; with its scale, that of the image, the mean of the patches' logits is the image's logit.
        """
        hidden = self.image(self.standardise(cells))
        if not averaged:
            return self.image_norm(hidden)
        variance = hidden.mean((1, 2), keepdim=True).var(-1, keepdim=True, correction=0)
        centred = (hidden - hidden.mean(-1, keepdim=True)) / (variance + self.image_norm.eps).sqrt()
        return centred * self.image_norm.weight + self.image_norm.bias

    def term_logits(self, states: Tensor, ids: Tensor) -> Tensor:
        """(..., W') to (..., N) logits of the terms `ids`; -inf for those that may not be active."""
        where = self.positions(ids)
        active = where < len(self.term_ids)
        rows = where.clamp(max=len(self.term_ids) - 1)
        logits = F.linear(states, self.terms_of_images[rows], self.image_bias[rows])
        return logits.masked_fill(~active, -torch.inf)

    def encode_text(self, texts: TextBatch, keep: Tensor | None = None) -> Tensor:
        """Texts to (B, A) weights, not normalised: what their own word pieces weigh, plus the expansion.

        Args:
            keep: (B,) 1 for texts that may be expanded, 0 for the others; None: all.
        """
        where = self.positions(texts.terms)
        own, expansion = self.text_side(texts, where, self)
        if expansion is None:
            return own
        return own + (expansion if keep is None else expansion * keep[:, None])


class ContextualText(nn.Module):
    """Own word pieces weigh by their states, the expansion comes from the sentence vector."""

    def __init__(self, config: FrozenConfig, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.weigh = nn.Sequential(
            nn.Linear(config.text_width, WEIGHING_WIDTH), nn.GELU(), nn.Linear(WEIGHING_WIDTH, 1)
        )
        self.expand = Expansion(config)

    def forward(self, texts: TextBatch, where: Tensor, heads: LexiconHeads) -> tuple[Tensor, Tensor]:
        """(B, A) weights of the own word pieces, the largest of each term, and (B, A) of the expansion."""
        assert texts.states is not None and texts.pooled is not None
        states = texts.states.to(heads.table.dtype)
        weights = F.softplus(self.weigh(states)[..., 0] + F.pad(heads.own, (0, 1))[where]) * texts.mask
        rows = weights.new_zeros(weights.shape[0], len(heads.term_ids) + 1)
        own = rows.scatter_reduce(1, where, weights, "amax")[:, :-1]
        return own, self.expand(_dropped(texts.pooled.to(states.dtype), self.dropout, self.training), heads.table)


class LookupText(nn.Module):
    """A word piece weighs the same in every text, and so does its expansion: a text is a sum of rows (Li-LSR).

    Attributes:
        words: (A, pooled_width) the text tower's vector of each term alone; not saved, set by the training.
    """

    rate_factors = {"gate": TERM_RATE}

    def __init__(self, config: FrozenConfig, dropout: float = 0.0):
        super().__init__()
        self.dropout, self.row_terms = dropout, config.row_terms
        self.expand = Expansion(config)
        self.gate = nn.Parameter(torch.zeros(config.terms))
        self.register_buffer("words", torch.zeros(config.terms, config.pooled_width), persistent=False)
        self.words: Tensor

    def forward(self, texts: TextBatch, where: Tensor, heads: LexiconHeads) -> tuple[Tensor, Tensor]:
        """As `ContextualText.forward`; a word piece that a text has twice counts once."""
        count = len(heads.term_ids)
        terms = _once(where, texts.mask & (where < count))
        has = terms >= 0
        bag = heads.own.new_zeros(len(where), count + 1).scatter(1, terms.where(has, count), 1.0)[:, :-1]
        rows = (self.rows(self.words, heads.table) * torch.sigmoid(self.gate)[:, None]).to(bag.dtype)
        # The sum of a dozen rows, which is much less work than a product of the bag and all of them.
        expansion = F.embedding_bag(terms.clamp(min=0), rows, mode="sum", per_sample_weights=has.to(bag.dtype))
        return bag * F.softplus(heads.own), expansion

    def rows(self, words: Tensor, table: Tensor) -> Tensor:
        """(N, pooled_width) vectors of words to (N, A) expansions of at most `row_terms` terms."""
        rows = self.expand(_dropped(words, self.dropout, self.training), table)
        return keep_heaviest(rows, self.row_terms)


class TableText(nn.Module):
    """Rows of every word piece of the vocabulary, written down: `LookupText` after training.

    Attributes:
        row_terms: (V, K) int16, or int32 for many terms: positions among the A terms; padded with 0 of weight 0.
        row_weights: (V, K) float16.
    """

    def __init__(self, config: FrozenConfig, dropout: float = 0.0):
        super().__init__()
        shape = (config.vocab_size, config.row_terms + 1)
        small = config.terms <= torch.iinfo(torch.int16).max
        self.register_buffer("row_terms", torch.zeros(shape, dtype=torch.int16 if small else torch.int32))
        self.register_buffer("row_weights", torch.zeros(shape, dtype=torch.float16))
        self.row_terms: Tensor
        self.row_weights: Tensor

    def forward(self, texts: TextBatch, where: Tensor, heads: LexiconHeads) -> tuple[Tensor, None]:
        """(B, A) sums of the rows of each text's different word pieces."""
        terms = _once(texts.terms, texts.mask)
        weights = self.row_weights[terms].float() * (terms >= 0)[..., None]  # (B, T, K)
        sums = weights.new_zeros(terms.shape[0], len(heads.term_ids))
        return sums.scatter_add(1, self.row_terms[terms].long().flatten(1), weights.flatten(1)), None


class Expansion(nn.Module):
    """Vectors of texts to weights of terms: into the terms' space, product with all of them, `saturate`."""

    rate_factors = {"bias": TERM_RATE}

    def __init__(self, config: FrozenConfig):
        super().__init__()
        self.activation = config.activation
        self.project = nn.Linear(config.pooled_width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.full((config.terms,), TEXT_BIAS))

    def forward(self, pooled: Tensor, table: Tensor) -> Tensor:
        """(N, pooled_width) and (A, W) to (N, A)."""
        return saturate(F.linear(self.norm(self.project(pooled)), table, self.bias), self.activation)


TEXT_SIDES: dict[str, Any] = {"contextual": ContextualText, "lookup": LookupText, "table": TableText}


def _once(terms: Tensor, mask: Tensor) -> Tensor:
    """(B, T) word pieces, -1 at padding and where a text has had the piece before."""
    same = (terms[:, :, None] == terms[:, None, :]) & mask[:, None, :]  # (B, T, T)
    before = torch.ones(same.shape[1:], dtype=torch.bool, device=terms.device).tril(-1)
    return terms.masked_fill((same & before).any(-1) | ~mask, -1)


def _dropped(pooled: Tensor, rate: float, training: bool) -> Tensor:
    """Sentence vectors at one length, so that towers of any scale start alike; then dropout."""
    return F.dropout(F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5, rate, training)
