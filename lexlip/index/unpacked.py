"""Packed lists and small searches in numpy alone: numba takes a second to load, which is longer than a person waits.

The same documents, codes and scores as `lexlip.index.codec` and `lexlip.index.scoring`, to the last bit, at some twenty
times their cost per posting. A process begins here, and goes over to the compiled functions once it has spent what
loading them would have cost, or before one search that costs as much.
"""

from __future__ import annotations

import threading

import numpy as np

from lexlip.index.layout import BEGIN, COUNT, END, LOW, SKIP_EVERY, SKIPS, TOP

BUDGET = 1 << 22  # postings that a process unpacks here: some tenths of a second
_CALL = 1 << 14  # what a call costs besides, in postings
_spent = 0
_lock = threading.Lock()


def affordable(postings: int) -> bool:
    """Whether so many postings are to be unpacked here; counts them if so."""
    global _spent
    with _lock:
        if _spent + postings + _CALL > BUDGET:
            _spent = BUDGET  # from here on compiled
            return False
        _spent += postings + _CALL
        return True


def prefer_compiled() -> None:
    """Load the compiled functions at the next search: for a service, which is to answer quickly from then on."""
    global _spent
    with _lock:
        _spent = BUDGET


def unpack(
    data: np.ndarray, skips: np.ndarray, entry: np.ndarray, bits: int, documents: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """A whole list: (COUNT,) int64 documents, ascending, and impact codes; None if it is not `codec.sound`.

    Args:
        data, skips, bits, documents: of the segment.
        entry: its row of the table of lists.
    """
    begin, end, count, low = (int(entry[column]) for column in (BEGIN, END, COUNT, LOW))
    unary = begin + ((count * (low + bits) + 7) >> 3)
    numbers = np.arange(count)
    ones = np.flatnonzero(np.unpackbits(data[unary:end], bitorder="little"))[:count]
    if len(ones) < count:
        return None
    at = numbers * (low + bits)
    fields = data[(begin + (at >> 3))[:, None] + np.arange(8)].view("<u8")[:, 0] >> (at & 7).astype(np.uint64)
    codes = (fields & np.uint64((1 << bits) - 1)).astype(np.int64)
    lows = ((fields >> np.uint64(bits)) & np.uint64((1 << low) - 1)).astype(np.int64)
    found = ((ones - numbers) << low) + np.cumsum(lows) + numbers
    marks = numbers[SKIP_EVERY::SKIP_EVERY]
    stated = skips[int(entry[SKIPS]) :][: len(marks)]
    sound = found[-1] < documents and codes.max() == entry[TOP]
    sound = sound and np.array_equal(stated[:, 0], found[marks]) and np.array_equal(stated[:, 1], ones[marks])
    return (found, codes) if sound else None


def best(
    lists: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, documents: int, deleted: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of one query, best first, equal scores by document; fewer if fewer hold a term of it.

    Args:
        lists: documents and stored weights of each term of the query, terms in ascending order.
        weights: of the terms in the query.
        documents: of the segment.
        deleted: bitmap, lowest bit first; empty where nothing is deleted.

    Returns:
        Documents and scores.
    """
    scores = np.zeros(documents)
    for (found, stored), weight in zip(lists, weights.tolist()):
        scores[found] += weight * stored
    if len(deleted):
        scores[np.unpackbits(deleted, count=documents, bitorder="little") > 0] = 0.0
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        some = some[scores[some] >= np.partition(scores[some], -k)[-k]]
    some = some[np.argsort(-scores[some], kind="stable")][:k]
    return some, scores[some]
