"""Kinds of terms by their spelling: which of a vocabulary's word pieces a lexicon may use.

V terms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# Words that every caption has say nothing of an image.
FUNCTION_WORDS = frozenset(
    "a an the of in on at to with and or is are was be been being it its he she they his her their him them this that "
    "there as by for from into over out up down off through while who which what very some other another".split()
)
_SPECIAL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]")
_UNUSED = re.compile(r"\[(unused|corner)\d+\]")


def _without_latin(piece: str) -> bool:
    """Whether a piece has letters and none of them is Latin."""
    letters = [letter for letter in piece.removeprefix("##") if letter.isalpha()]
    return bool(letters) and not any("LATIN" in unicodedata.name(letter, "") for letter in letters)


KINDS: dict[str, Callable[[str], bool]] = {
    "special": lambda piece: bool(_SPECIAL.fullmatch(piece)),
    "unused": lambda piece: bool(_UNUSED.fullmatch(piece)),
    "non_latin": _without_latin,
    "suffix": lambda piece: piece.startswith("##"),
    "stop": lambda piece: piece in FUNCTION_WORDS,
    "sign": lambda piece: not any(letter.isalnum() for letter in piece),
}


def terms_of_kinds(vocabulary: Mapping[str, int], kinds: Sequence[str], size: int) -> Tensor:
    """(V,) bool, true for the terms of at least one of these kinds; `vocabulary` has the id of each piece, V is `size`.

    Special tokens are such by their spelling, as BERT's vocabularies write them.
    """
    found = torch.zeros(size, dtype=torch.bool)
    for piece, term in vocabulary.items():
        if term < size and any(KINDS[kind](piece) for kind in kinds):
            found[term] = True
    return found


def own_terms(ids: Tensor, mask: Tensor, size: int) -> Tensor:
    """(B, V) float, 1 for the terms that stand in each text.

    Args:
        ids: (B, L) token ids; `mask` (B, L) is 0 at padding.
        size: V.
    """
    own = torch.zeros(len(ids), size, device=ids.device)
    return own.scatter_reduce(1, ids.clamp(max=size - 1), (mask * (ids < size)).to(own.dtype), "amax")
