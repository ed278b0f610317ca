"""Do the words mean what is seen? How many of an image's heaviest terms stand in its captions, beside chance.

N images, V terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lexlip.models.terms import FUNCTION_WORDS
from lexlip.sparse import SparseRows

HEAVIEST = 10


def content_terms(vocabulary: dict[str, int]) -> np.ndarray:
    """(V,) bool: the word pieces that count, without function words, pieces inside of words, signs and specials."""
    counted = np.zeros(max(vocabulary.values()) + 1, bool)
    for piece, term in vocabulary.items():
        counted[term] = piece.isalnum() and piece not in FUNCTION_WORDS
    return counted


def terms_of_images(ids: np.ndarray, words: SparseRows) -> list[np.ndarray]:
    """For each of (N,) image ids the ids of its captions' terms, of rows of captions that have their image's id."""
    order = np.argsort(words.ids[words.rows], kind="stable")
    of_images, terms = words.ids[words.rows][order], words.terms[order]
    starts, stops = (np.searchsorted(of_images, ids, side) for side in ("left", "right"))
    return [np.unique(terms[a:b]) for a, b in zip(starts, stops, strict=True)]


def grounding(
    images: SparseRows, captions: Sequence[np.ndarray], counted: np.ndarray, heaviest: int = HEAVIEST
) -> dict:
    """Of each image's heaviest terms, those that its captions have.

    Args:
        images: (N, V) weights.
        captions: for each image the ids of its captions' word pieces.
        counted: (V,) bool, see `content_terms`.

    Returns:
        "images": percentage of images with at least one such term, "terms": their mean number, and both again as
        "chance_images" and "chance_terms" for captions of another image.
    """
    top = images.top_k(heaviest)
    own = [np.unique(terms[counted[terms]]) for terms in captions]
    hits, other = [], []
    for row in range(len(top)):
        terms = top.terms[top.offsets[row] : top.offsets[row + 1]]
        hits.append(len(np.intersect1d(terms, own[row])))
        other.append(len(np.intersect1d(terms, own[(row + len(top) // 2) % len(top)])))
    found, chance = np.array(hits), np.array(other)
    return {
        "images": 100 * float((found > 0).mean()), "terms": float(found.mean()),
        "chance_images": 100 * float((chance > 0).mean()), "chance_terms": float(chance.mean()),
    }  # fmt: skip
