"""Weights to impacts of a few bits, and back.

A codebook holds at most 2^b weights, ascending; every weight is stored as the number of the one it counts as. Bins are
chosen on the numbers of float16, in which weights arrive, so that quantising is one look into a table.

What matters is the order of the best results, and these are made of heavy weights: in a million random documents of 16
terms half of all weights are below 0.23, but only one in ten of those that a top-10 result is made of. So `fitted`
places bins where both weights and results are: density of bins ~ (density of weights x w^6)^(1/3), Bennett's rule for
the least squared error under the importance w^6. `linear` divides [0, largest weight] evenly. Recall@10 against exact
scores, 1,000 queries on sets of a million documents of 16 and 32 terms (docs/INDEX.md says which): 6 bits .949 and
.959 linear, .962 and .968 fitted; 8 bits .985 and .989, .989 and .990; 9 bits .993 and .994, .994 and .995.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexlip.index.errors import IndexingError

SCALES = ("fitted", "linear")
MIN_BITS, MAX_BITS = 1, 12  # a float16 has 11 significant bits
_IMPORTANCE = 6
_POSITIVE = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # 0 and all positive float16


@dataclass(frozen=True)
class Codebook:
    """The weights that impact codes stand for.

    Attributes:
        bits: b.
        values: (2^b,) float64, each a float16; ascending, codes that are not used repeat the last one.
        code_of: (2^16,) uint16, the code of each positive float16 by its bits.
    """

    bits: int
    values: np.ndarray
    code_of: np.ndarray

    def error(self, histogram: np.ndarray) -> float:
        """Mean squared error of such weights, heavy ones counted as in `fitted`; infinite where one is too heavy."""
        used = np.flatnonzero(histogram[: len(_POSITIVE)])
        if not len(used):
            return 0.0
        if self.code_of[used[-1]] + 1 == len(self.values) and _POSITIVE[used[-1]] > 1.1 * self.values[-1]:
            return np.inf
        weights = _POSITIVE[used]
        share = histogram[used] * weights**_IMPORTANCE
        return float((share * (weights - self.values[self.code_of[used]]) ** 2).sum() / share.sum())


def histogram(weights: np.ndarray) -> np.ndarray:
    """How often each float16 occurs: (n,) float16 to (2^16,) int64."""
    return np.bincount(weights.view(np.uint16), minlength=1 << 16)


def fit(counts: np.ndarray, bits: int, scale: str) -> Codebook:
    """The codebook for weights with this histogram.

    Where no more than 2^b different weights occur, each has its own code and nothing is rounded.

    Args:
        counts: (2^16,) occurrences of each positive float16.
        bits: b, from 1 to 12.
        scale: "fitted" or "linear".

    Raises:
        IndexingError: other bits or another scale.
    """
    check(bits, scale)
    counts = counts[: len(_POSITIVE)]
    used = np.flatnonzero(counts)
    if len(used) <= 1 << bits:
        return from_values(_POSITIVE[used], bits)
    if scale == "linear":
        density = np.full(len(_POSITIVE), 1.0)
    else:
        # Density of weights: occurrences over the distance to the next number, which doubles with every octave.
        density = (counts / np.diff(_POSITIVE, append=2**16) * _POSITIVE**_IMPORTANCE) ** (1 / 3)
    mass = density * np.diff(_POSITIVE, append=2**16)
    mass[used[-1] + 1 :] = 0
    mass[0] = 0
    bins = np.cumsum(mass) - mass / 2
    codes = np.minimum(bins / mass.sum() * (1 << bits), (1 << bits) - 1).astype(np.int64)
    # Each code stands for the mean of its weights; codes without weights are closed up.
    number = np.bincount(codes[used], counts[used], minlength=1 << bits)
    total = np.bincount(codes[used], counts[used] * _POSITIVE[used], minlength=1 << bits)
    return from_values((total[number > 0] / number[number > 0]).astype(np.float16).astype(np.float64), bits)


def from_values(values: np.ndarray, bits: int) -> Codebook:
    """A codebook of given weights, ascending float16: every weight counts as the nearest one."""
    padded = np.zeros(1 << bits)
    if len(values):
        padded[: len(values)] = values
        padded[len(values) :] = values[-1]
    code_of = np.zeros(1 << 16, np.uint16)
    if len(values):
        code_of[: len(_POSITIVE)] = np.searchsorted((values[1:] + values[:-1]) / 2, _POSITIVE)
    return Codebook(bits, padded, code_of)


def check(bits: int, scale: str) -> None:
    """Refuse other bits or another scale.

    Raises:
        IndexingError: with what would do.
    """
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise IndexingError(f"impact_bits={bits}: an impact takes {MIN_BITS} to {MAX_BITS} bits")
    if scale not in SCALES:
        raise IndexingError(f"impact_scale={scale!r}: either of {', '.join(SCALES)}")
