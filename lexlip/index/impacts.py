"""Weights to impacts of a few bits, and back.

A codebook holds at most 2^b weights, ascending; every weight is stored as the number of the one it counts as. Bins are
chosen on the numbers of float16, in which weights arrive, so that quantising is one table lookup.

What matters is the order of the best results, and these are made of heavy weights: in a million random documents of 16
terms half of all weights are below 0.23, but only one in ten of those that a top-10 result is made of. So `fitted`
places four fifths of its values where both weights and results are: density of values ~ (density of weights x
w^6)^(1/3), Bennett's rule for the least squared error under the importance w^6; the other fifth is spread evenly, which
bounds the error of light weights and costs no recall. `linear` divides [0, largest weight] evenly. docs/INDEX.md has
both measured at several bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lexlip.errors import IndexingError

SCALES = ("fitted", "linear")
MIN_BITS, MAX_BITS = 1, 12  # a float16 has 11 significant bits
_IMPORTANCE = 6
# This fraction of the codes is spread evenly: no weight is rounded by more than five times what `linear` rounds by.
_EVEN = 0.2
# Bins that a density is estimated from: a single float16 occurs too seldom for the cube root of its count.
_HISTOGRAM_BINS = 256
# A codebook is kept for new weights while their squared error is at most this many times that of its first ones.
_WORSE = 2.0
_POSITIVE = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # 0 and all positive float16


@dataclass(frozen=True)
class Codebook:
    """The weights that impact codes stand for.

    Attributes:
        bits: b.
        values: (2^b,) float64, each a float16; ascending, codes that are not used repeat the last one.
        code_of: (2^16,) uint16, the code of each positive float16 by its bits.
        fitted_error: `error` on the weights that it was fitted to.
    """

    bits: int
    values: np.ndarray
    code_of: np.ndarray
    fitted_error: float = 0.0

    def error(self, histogram: np.ndarray) -> float:
        """Mean squared error of such weights, heavy ones counted as in `fitted`."""
        used = np.flatnonzero(histogram[: len(_POSITIVE)])
        if not len(used):
            return 0.0
        weights = _POSITIVE[used]
        importance = histogram[used] * weights**_IMPORTANCE
        return float((importance * (weights - self.values[self.code_of[used]]) ** 2).sum() / importance.sum())


def histogram(weights: np.ndarray) -> np.ndarray:
    """How often each float16 occurs: (n,) float16 to (2^16,) int64."""
    return np.bincount(weights.view(np.uint16), minlength=1 << 16)


def choose(counts: np.ndarray, bits: int, scale: str, kept: Codebook | None) -> Codebook:
    """The codebook `kept` while it serves these weights about as well as those it was fitted to, else one of their own.

    Segments that share a codebook are merged without rounding again.
    """
    if kept is not None and kept.bits == bits and kept.error(counts) <= _WORSE * kept.fitted_error:
        return kept
    return fit(counts, bits, scale)


def fit(counts: np.ndarray, bits: int, scale: str) -> Codebook:
    """The codebook for weights with this histogram.

    Where no more than 2^b different weights occur, each has its own code and nothing is rounded.

    Args:
        counts: (2^16,) occurrences of each positive float16.
        bits: b, from 1 to 12.
        scale: "fitted" or "linear".
    """
    counts = counts[: len(_POSITIVE)]
    used = np.flatnonzero(counts)
    if len(used) <= 1 << bits:
        return from_values(_POSITIVE[used], bits)
    heaviest = _POSITIVE[used[-1]]
    edges = np.linspace(0, heaviest, _HISTOGRAM_BINS + 1)
    if scale == "linear":
        density = np.ones(_HISTOGRAM_BINS)
    else:
        number, _ = np.histogram(_POSITIVE[used], edges, weights=counts[used])
        density = (number * ((edges[1:] + edges[:-1]) / 2) ** _IMPORTANCE) ** (1 / 3)
        density = (1 - _EVEN) * density / density.mean() + _EVEN
    bins = np.interp(_POSITIVE[used], edges, np.concatenate([[0], density.cumsum()]) / density.sum())
    codes = np.minimum(bins * (1 << bits), (1 << bits) - 1).astype(np.int64)
    # Each code stands for the mean of its weights; codes without weights are closed up.
    number = np.bincount(codes, counts[used], minlength=1 << bits)
    total = np.bincount(codes, counts[used] * _POSITIVE[used], minlength=1 << bits)
    means = (total[number > 0] / number[number > 0]).astype(np.float16).astype(np.float64)
    book = from_values(means, bits)
    return replace(book, fitted_error=book.error(counts))


def from_values(values: np.ndarray, bits: int, fitted_error: float = 0.0) -> Codebook:
    """A codebook of given weights, ascending float16: every weight counts as the nearest one."""
    padded = np.zeros(1 << bits)
    if len(values):
        padded[: len(values)] = values
        padded[len(values) :] = values[-1]
    code_of = np.zeros(1 << 16, np.uint16)
    if len(values):
        code_of[: len(_POSITIVE)] = np.searchsorted((values[1:] + values[:-1]) / 2, _POSITIVE)
    return Codebook(bits, padded, code_of, fitted_error)


def check(bits: int, scale: str) -> None:
    """Refuse other bits or another scale.

    Raises:
        IndexingError: with what would do.
    """
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise IndexingError(f"impact_bits={bits}: an impact takes {MIN_BITS} to {MAX_BITS} bits")
    if scale not in SCALES:
        raise IndexingError(f"impact_scale={scale!r}: either of {', '.join(SCALES)}")
