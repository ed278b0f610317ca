"""Packed lists, ids and small searches in numpy and Python alone: a second, which numba takes to load, is long to wait.

The same documents, codes and scores as `lexlip.index.codec` and `lexlip.index.scoring`, to the last bit, at some twenty
times their cost per posting. A process begins here, and goes over to the compiled functions once it has spent what
loading them would have cost, or before one search that costs as much.
"""

from __future__ import annotations

import threading

import numpy as np

from lexlip.index.layout import BEGIN, COUNT, END, LOW, SKIP_EVERY, SKIPS, TOP

ID = 20  # what an id costs, in postings
BUDGET = 1 << 22  # postings that a process unpacks here: some tenths of a second
_CALL = 1 << 14  # what a call costs besides, in postings
_spent = 0
_lock = threading.Lock()


def affordable(postings: int, call: int = _CALL) -> bool:
    """Whether so many postings are to be unpacked here; counts them, and the call, if so."""
    global _spent
    with _lock:
        if _spent + postings + call > BUDGET:
            _spent = BUDGET  # from here on compiled
            return False
        _spent += postings + call
        return True


def exhausted() -> bool:
    """Whether the budget is spent, so that nobody need count postings any more."""
    return _spent >= BUDGET


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
    whole = unary + ((end - unary + 7) & ~7)  # words of 8 bytes, the last of which may reach beyond
    ones = np.flatnonzero(np.unpackbits(data[unary:whole], bitorder="little"))[:count]
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


def strings(data: np.ndarray, groups: np.ndarray, group: int, count: int) -> list[bytes] | None:
    """Ids as `lexlip.index.front_coding.decode` reads them: the first `count` of some groups; None if damaged."""
    content, begin = data[groups[0] : groups[-1]].tobytes(), int(groups[0])
    ends = (groups - begin).tolist()
    found: list[bytes] = []
    position = end = 0
    for number in range(count):
        before, shared = found[-1] if found else b"", 0
        if number % group == 0:
            if number and position != end:
                return None
            position, end = ends[number // group], ends[number // group + 1]
        else:
            shared, position = _number(content, position, end)
        rest, position = _number(content, position, end)
        if shared > len(before) or rest > end - position:
            return None
        found.append(before[:shared] + content[position : position + rest])
        if number and found[-1] <= before:
            return None
        position += rest
    return found if count % group or position == end else None


def _number(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = content[position]
        value |= (byte & 127) << shift if shift < 35 else 0
        shift, position = shift + 7, position + 1
        if byte < 128:
            break
    return value, position
