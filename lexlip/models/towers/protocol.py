"""What a frozen tower gives, whatever library it comes from.

B batch, L image tokens, T word pieces of a text, D width of a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from lexlip.models.attribution import Pooling


class TextFeatures(NamedTuple):
    """Texts by the word pieces of the lexicon, special tokens left out.

    Attributes:
        terms: (B, T) int64 ids of the lexicon's word pieces, 0 at padding.
        mask: (B, T) bool, False at padding.
        states: (B, T, D) float32 states of the tower's tokens, averaged over those that share a character with the
            word piece; 0 at padding.
        pooled: (B, D') float32 the tower's own vector of the whole text.
    """

    terms: Tensor
    mask: Tensor
    states: Tensor
    pooled: Tensor


class ImageTower(Protocol):
    """A frozen image tower, always in evaluation mode.

    Attributes:
        reference: loads the same tower again.
        width: D of `features`.
        tokens: L of `features`; None where it depends on the image.
        transform: what `preprocess` does; small, and picklable for loader processes.
        pooling: what becomes of its patches, see `cells`; None: there are none.
    """

    reference: str
    width: int
    tokens: int | None
    transform: Any

    @property
    def pooling(self) -> Pooling | None: ...

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image to what `features` takes a stack of: (3, H, W) float32; one row of numbers for several towers."""

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) preprocessed images to (B, L, D) float32; L is 1 for pooled, cls and mean."""

    def cells(self, pixels: Tensor) -> Tensor:
        """(B, 3, H', W') preprocessed images to (B, H, W, D) float32, one row of features for each patch."""

    def facts(self) -> dict:
        """What decides about the features, as JSON: reference, hash of the weights, preprocessing."""


class TextTower(Protocol):
    """A frozen text tower, always in evaluation mode.

    Attributes:
        reference: loads the same tower again.
        width: D of `TextFeatures.states`.
        pooled_width: D' of `TextFeatures.pooled`.
        tokenizer: the tower's own.
        lexicon: the tokenizer whose word pieces are the terms.
    """

    reference: str
    width: int
    pooled_width: int
    tokenizer: Any
    lexicon: Any

    def features(self, texts: Sequence[str]) -> TextFeatures:
        """Texts to their features; the word pieces that the tower had no room for are left out."""

    def facts(self) -> dict:
        """What decides about the features, as JSON: reference, hash of the weights, both tokenizers, pooling."""

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the tower reads."""

    def term_embeddings(self) -> Tensor | None:
        """(V, D) what the tower begins from for each word piece; None where the lexicon has other pieces."""
