"""Whole-word masking of WordPiece ids, in numpy, a batch at a time. Costs some microseconds per caption.

A word is a word piece together with the `##` pieces after it. By BERT's rule, each piece of the chosen words becomes
[MASK] (80%), a random word piece (10%), or stays as it is (10%); every piece of a chosen word is to be predicted.
"""

from dataclasses import dataclass

import numpy as np

from lexlip_data.errors import DataError
from lexlip_data.loading.rng import uniforms

IGNORED = -100  # label of a position that is not to be predicted


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask_id: int
    continues: np.ndarray  # bool (V,): the word piece continues the word before it
    special: np.ndarray  # bool (V,): never masked, never drawn as a replacement
    ordinary: np.ndarray  # int64: the ids that are not special


def read_vocabulary(tokenizer) -> Vocabulary:
    """From any Hugging Face WordPiece tokenizer. Raises DataError if it has no mask token."""
    if tokenizer.mask_token_id is None:
        raise DataError(f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no [MASK] token")
    pieces = tokenizer.get_vocab()
    continues, special, ordinary = np.zeros((3, max(pieces.values()) + 1), dtype=bool)
    for piece, i in pieces.items():
        continues[i], ordinary[i] = piece.startswith("##"), True
    special[list(tokenizer.all_special_ids)] = True
    return Vocabulary(tokenizer.mask_token_id, continues, special, np.flatnonzero(ordinary & ~special))


def word_numbers(ids: np.ndarray, vocabulary: Vocabulary, whole_words: bool = True) -> np.ndarray:
    """The word that each position belongs to: int64 (B, L), 0, 1, ... from the left, -1 at special tokens.

    With whole_words=False every word piece is a word. A `##` piece that follows a special token starts a word.
    """
    ordinary = ~vocabulary.special[ids]
    starts = ordinary.copy()
    if whole_words:
        starts[:, 1:] &= ~(vocabulary.continues[ids[:, 1:]] & ordinary[:, :-1])
    return np.where(ordinary, np.cumsum(starts, axis=1) - 1, -1)


def mask_words(
    ids: np.ndarray, words: np.ndarray, fraction: float, vocabulary: Vocabulary, seeds: np.ndarray, part: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a fraction of each caption's words.

    What happens to a caption depends on its ids and its seed, neither on the other captions nor on the padding.

    Args:
        ids: int64 (B, L).
        words: int64 (B, L) from `word_numbers`.
        fraction: of the words, in [0, 1]. The number of words is rounded, but at least one if fraction > 0.
        seeds: int64 (B,), >= 0.
        part: which of several independent maskings of the same captions.
    Returns:
        (masked ids, labels), each int64 (B, L); labels are IGNORED where nothing is to be predicted.
    """
    n_words = words.max(axis=1, initial=-1) + 1
    most = int(n_words.max(initial=0))
    if most == 0 or fraction <= 0:
        return ids.copy(), np.full_like(ids, IGNORED)
    wanted = np.minimum(n_words, np.maximum(1, np.rint(n_words * fraction)))
    keys = uniforms(seeds, 3 * part, most)
    keys[np.arange(most) >= n_words[:, None]] = 2.0  # sorted behind the caption's own words
    rank = np.argsort(np.argsort(keys, axis=1), axis=1)
    return _replaced(ids, words, rank < wanted[:, None], vocabulary.ordinary, vocabulary.mask_id, seeds, part)


def mask_positions(
    ids: np.ndarray, words: np.ndarray, fraction: float, vocabulary: Vocabulary, seeds: np.ndarray, length: int,
    part: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mask words as the official code does: a fraction of `length` positions, drawn among words and padding alike.

    Words and padded positions come in a random order, and each is taken unless its word pieces would be too many. What
    falls on padding masks nothing, so short captions lose few words, some none. Replacements are drawn from the whole
    vocabulary. Arguments and result as `mask_words`; `length` is that of a padded caption.
    """
    if fraction <= 0:
        return ids.copy(), np.full_like(ids, IGNORED)
    rows, n_words = np.arange(len(ids)), words.max(axis=1, initial=-1) + 1
    pieces = np.zeros((len(ids), length), dtype=np.int64)  # of each candidate: the words, then the rest
    np.add.at(pieces, (rows[:, None].repeat(words.shape[1], 1)[words >= 0], words[words >= 0]), 1)
    candidates = n_words + length - (words >= 0).sum(axis=1) - 2  # all but [CLS] and [SEP]
    pieces[np.arange(length) >= n_words[:, None]] = 1
    keys = uniforms(seeds, 3 * part, length)
    keys[np.arange(length) >= candidates[:, None]] = 2.0
    wanted, taken, chosen = max(1, round(length * fraction)), np.zeros(len(ids), np.int64), np.zeros(keys.shape, bool)
    for at in np.argsort(keys, axis=1).T:
        fits = (taken + pieces[rows, at] <= wanted) & (keys[rows, at] < 1)
        chosen[rows, at] = fits
        taken += np.where(fits, pieces[rows, at], 0)
    return _replaced(ids, words, chosen, np.arange(len(vocabulary.special)), vocabulary.mask_id, seeds, part)


def _replaced(
    ids: np.ndarray, words: np.ndarray, chosen: np.ndarray, drawn: np.ndarray, mask_id: int, seeds: np.ndarray,
    part: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Masked ids and labels, where `chosen` (B, words) says which words; random word pieces come from `drawn`."""
    at = (words >= 0) & np.take_along_axis(chosen, np.maximum(words, 0), axis=1)
    draw = uniforms(seeds, 3 * part + 1, ids.shape[1])
    which = (uniforms(seeds, 3 * part + 2, ids.shape[1]) * len(drawn)).astype(np.int64)
    replaced = np.where(draw < 0.8, mask_id, np.where(draw < 0.9, drawn[which], ids))
    return np.where(at, replaced, ids), np.where(at, ids, IGNORED)
