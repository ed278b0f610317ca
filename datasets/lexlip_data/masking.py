"""Whole-word masking of WordPiece ids, in numpy. Costs microseconds per caption.

A word is a piece together with the `##` pieces after it. Of the chosen words each piece becomes [MASK] (80%), a
random piece (10%), or stays as it is (10%), BERT's rule; every piece of a chosen word is to be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexlip_data.errors import DataError

IGNORED = -100  # label of a position that is not to be predicted


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask_id: int
    continues: np.ndarray  # bool (V,): the piece goes on with the word before it
    special: np.ndarray  # bool (V,): never masked, never drawn as a replacement
    ordinary: np.ndarray  # int64: the ids that are not special


def read_vocabulary(tokenizer) -> Vocabulary:
    """From any Hugging Face WordPiece tokenizer. Raises DataError if it has no mask token."""
    if tokenizer.mask_token_id is None:
        raise DataError(f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no [MASK] token")
    pieces = tokenizer.get_vocab()
    size = max(pieces.values()) + 1
    continues, special = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for piece, i in pieces.items():
        continues[i] = piece.startswith("##")
    special[list(tokenizer.all_special_ids)] = True
    ordinary = np.array(sorted(set(pieces.values()) - set(tokenizer.all_special_ids)), dtype=np.int64)
    return Vocabulary(tokenizer.mask_token_id, continues, special, ordinary)


def word_numbers(ids: np.ndarray, vocabulary: Vocabulary, whole_words: bool = True) -> np.ndarray:
    """The word that each position belongs to: int64 (L,), 0, 1, ... from the left, -1 at special tokens.

    With whole_words=False every piece is a word of its own. A `##` piece that follows a special token starts a word.
    """
    ordinary = ~vocabulary.special[ids]
    starts = ordinary.copy()
    if whole_words:
        after_ordinary = np.concatenate([[False], ordinary[:-1]])
        starts &= ~(vocabulary.continues[ids] & after_ordinary)
    return np.where(ordinary, np.cumsum(starts) - 1, -1)


def mask_words(
    ids: np.ndarray, words: np.ndarray, share: float, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a share of a caption's words.

    Args:
        ids: int64 (L,).
        words: int64 (L,) from `word_numbers`.
        share: of the words, in [0, 1]. The number of words is rounded, but at least one if share > 0.
        rng: where the choice is drawn from.
    Returns:
        (masked ids, labels), each int64 (L,); labels are IGNORED where nothing is to be predicted.
    """
    masked, labels = ids.copy(), np.full_like(ids, IGNORED)
    n_words = int(words.max(initial=-1)) + 1
    if n_words == 0 or share <= 0:
        return masked, labels
    chosen = rng.choice(n_words, size=min(n_words, max(1, round(n_words * share))), replace=False)
    at = np.flatnonzero(np.isin(words, chosen))
    labels[at] = ids[at]
    draw = rng.random(len(at))
    random_pieces = rng.choice(vocabulary.ordinary, size=len(at))
    masked[at] = np.where(draw < 0.8, vocabulary.mask_id, np.where(draw < 0.9, random_pieces, ids[at]))
    return masked, labels
