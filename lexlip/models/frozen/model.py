"""A model of frozen towers and trained heads, used like every other.

B batch, L image tokens, T word pieces, V terms of the vocabulary, E width of the dense reference.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.heads import DenseHeads, LexiconHeads, TextBatch
from lexlip.models.hub import FolderModel
from lexlip_data.loading.batch import Batch


class FrozenLexLIP(FolderModel):
    """Heads, and the towers once they are needed.

    Args:
        config: shapes of the heads and references of the towers.
        tokenizer: of the lexicon.
        image_dropout, text_dropout: of the features, in training.

    Attributes:
        heads: the lexicon's; None in a dense reference alone.
        dense: the dense reference; None where it does not come along.
    """

    head: ClassVar[str] = "lexicon"
    config: FrozenConfig  # type: ignore[assignment]  # of another kind than that of trained towers

    def __init__(
        self, config: FrozenConfig, tokenizer: PreTrainedTokenizerBase | None = None, image_dropout: float = 0.0,
        text_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.heads = LexiconHeads(config, image_dropout, text_dropout) if config.head == "lexicon" else None
        self.dense = DenseHeads(config, image_dropout, text_dropout) if config.embed_dim else None

    # --- batches of cached features ---

    @staticmethod
    def text_batch(batch: Batch) -> TextBatch:
        """The texts of a batch of cached features."""
        return TextBatch(batch["text_ids"], batch["text_mask"], batch.get("text_states"), batch.get("text_pooled"))

    def features_image(self, batch: Batch) -> Tensor:
        """Features of images to (B, V) weights, not normalised."""
        return self.heads.scattered(self.heads.encode_image(batch["image"]))

    def features_text(self, batch: Batch) -> Tensor:
        """Features of texts to (B, V) weights, not normalised."""
        return self.heads.scattered(self.heads.encode_text(self.text_batch(batch)))

    def dense_image(self, batch: Batch) -> Tensor:
        """Features of images to (B, E) vectors of the dense reference, not normalised."""
        assert self.dense is not None
        return self.dense.encode_image(batch["image"])

    def dense_text(self, batch: Batch) -> Tensor:
        """Features of texts to (B, E) vectors of the dense reference, not normalised."""
        assert self.dense is not None
        return self.dense.encode_text(batch["text_pooled"])
