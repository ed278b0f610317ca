"""The inner loop of a search: one query after another over one segment, term at a time, block of documents by block.

A block's accumulators stay in the processor's first two caches. They are integers: a term with query weight q adds
q * impact * scale, rounded, where the scale makes the largest possible sum LIMIT. What could be in the result by these
sums is scored again in float64, so results do not depend on the rounding:

- A term's addend is the exact one rounded up, at least 1. So over T terms a document's sum exceeds its scaled score by
  0 to T, and of two documents in the wrong order the sums differ by at most T. Every document within T + 2 of the
  k-th sum is kept; the 2 covers the rounding of the float64 products themselves, which is below 1e-6.
- The kept ones get sum(q * impact) in float64, terms in ascending order, and are sorted by (score, document).

Accumulators are never cleared. Every block counts from a floor that lies above all sums of the block before, and what
is below the floor counts as 0; after a hundred blocks the floor starts over.
"""

from __future__ import annotations

import numpy as np

from lexlip.index.codec import NO_DOCUMENT, find, posting, sound, unary_begin
from lexlip.index.compiled import compiled
from lexlip.index.layout import BEGIN, COUNT, END, LOW, MAX_QUERY_TERMS, SKIP_EVERY, TOP

BLOCK = 1 << 14  # documents whose accumulators, 64 KiB, are worked on at a time
LIMIT = 1 << 24  # the largest sum of a query, up to rounding
_STEP = LIMIT + MAX_QUERY_TERMS  # no sum of any query lies further above its floor
_CEILING = (1 << 31) - 1

# Columns of a cursor: posting, its document and code, and how to decode the next one.
_AT, _DOCUMENT, _CODE, _WORD, _BASE, _LOWS = range(6)


@compiled
def search(
    data, table, skips, terms, impacts, bits, documents, deleted, checked,
    query_terms, query_weights, query_offsets, k, at_least, drop, candidates, sums, floor, results, scores,
):  # fmt: skip
    """The k best documents of some queries in one segment.

    Args:
        data: uint8, the section of postings, with its padding.
        table, skips: of the segment's lists, as `lexlip.index.codec` writes them.
        terms: (L,) uint32, the term of each list, ascending.
        impacts: (2^bits,) float64, the weight that each impact code stands for.
        documents: how many there are.
        deleted: uint8 bitmap, lowest bit first; empty where nothing is deleted.
        checked: (L,) uint8, 0 for lists whose bytes nobody looked at yet; those of the queries are set.
        query_terms, query_weights, query_offsets: Q queries in rows, each row's terms ascending, weights above 0.
        at_least: (Q,) float64, a score below which a document is of no use.
        drop: fraction of a query's largest possible score that the terms left out may hold; 0 is exact.
        candidates: documents that get the terms left out added, where `drop` is above 0.
        sums, floor: (BLOCK,) int32 and (1,) int64, kept from call to call; zeros at first.
        results, scores: (Q, k) int64 and float64; filled, best first, equal scores by document, then -1 and 0.

    Returns:
        -1, or the row of the table whose list is damaged; then nothing is filled from that query on.
    """
    for query in range(len(query_offsets) - 1):
        rows, weights = _lists(
            terms, query_terms[query_offsets[query] : query_offsets[query + 1]],
            query_weights[query_offsets[query] : query_offsets[query + 1]],
        )  # fmt: skip
        results[query], scores[query] = -1, 0.0
        if len(rows) == 0:
            continue
        for row in rows:
            if not checked[row]:
                if not sound(data, skips, table[row], bits, documents):
                    return row
                checked[row] = 1
        lists = table[rows]
        used = np.ones(len(rows), np.bool_)
        if drop > 0:
            _drop(lists, impacts, weights, drop, used)
        _search(
            data, lists, skips, impacts, bits, documents, deleted, weights, used,
            k, at_least[query], candidates if drop > 0 else 0, sums, floor, results[query], scores[query],
        )  # fmt: skip
    return -1


@compiled
def _lists(terms, query_terms, query_weights):
    """Rows of the table for those of a query's terms that have a list, and their weights."""
    rows = np.empty(len(query_terms), np.int64)
    weights = np.empty(len(query_terms), np.float64)
    count = 0
    for j in range(len(query_terms)):
        row = np.searchsorted(terms, query_terms[j])
        if row < len(terms) and terms[row] == query_terms[j]:
            rows[count], weights[count] = row, query_weights[j]
            count += 1
    return rows[:count], weights[:count]


@compiled
def _drop(lists, impacts, weights, ratio, used):
    """Leave out the terms that cost most for what they can add, while together they can add `ratio` of it at most."""
    bounds = weights * impacts[lists[:, TOP]]
    left = ratio * bounds.sum()
    for j in np.argsort(bounds / lists[:, COUNT]):
        if bounds[j] <= left:
            left -= bounds[j]
            used[j] = False
    if not used.any():
        used[np.argmax(bounds)] = True


@compiled
def _search(
    data, lists, skips, impacts, bits, documents, deleted, weights, used,
    k, at_least, candidates, sums, floor, results, scores,
):  # fmt: skip
    """One query."""
    total = (weights * impacts[lists[:, TOP]]).sum()
    scale = LIMIT / total
    slack = len(lists) + 2
    most = min(max(k, candidates), documents)
    # The least sum of a document that reaches `at_least`; a document that has lost terms has no such bound.
    lowest = 1 if candidates else max(1, np.int64(at_least * scale) - 2)

    blocks = (documents + BLOCK - 1) // BLOCK
    cursors = np.empty((blocks + 1, len(lists), 6), np.int64)  # where each list stands at each block's begin
    for j in range(len(lists)):
        _open(data, lists, j, bits, used[j], cursors)
    best = np.empty(most, np.int64), np.empty(most, np.int64)  # highest sums so far and their documents, as a heap
    size = 0
    kept = np.empty((max(1024, 4 * most), 2), np.int64)  # document and sum
    keeping = 0
    over = np.empty(BLOCK, np.int64)  # documents of the block that passed the threshold
    threshold = lowest
    for block in range(blocks):
        begin = block * BLOCK
        floor[0] += _STEP
        if floor[0] > _CEILING - _STEP:
            sums[:] = 0
            floor[0] = 0
        passed = _accumulate(
            data, lists, bits, impacts, weights, scale, block, min(begin + BLOCK, documents), cursors,
            sums, np.int32(floor[0]), threshold, over,
        )  # fmt: skip
        for n in range(passed):
            document = begin + over[n]
            value = np.int64(sums[over[n]]) - floor[0]
            if value < threshold or (len(deleted) and deleted[document >> 3] >> (document & 7) & 1):
                continue
            if keeping == len(kept):
                keeping = _forget(kept, keeping, threshold)
                if 2 * keeping > len(kept):
                    longer = np.empty((2 * len(kept), 2), np.int64)
                    longer[:keeping] = kept[:keeping]
                    kept = longer
            kept[keeping, 0], kept[keeping, 1] = document, value
            keeping += 1
            size = _offer(best[0], best[1], size, value, document)
            if size == most:
                threshold = max(lowest, best[0][0] - slack)
    keeping = _forget(kept, keeping, threshold)

    top = np.empty(min(k, keeping), np.float64), np.empty(min(k, keeping), np.int64)
    size = 0
    for n in range(keeping):
        document = kept[n, 0]
        score = 0.0
        for j in range(len(lists)):
            # From the beginning of the block, unless a skip is likely to be nearer.
            if used[j] and lists[j, COUNT] <= SKIP_EVERY * blocks:
                code = _code(data, lists, j, bits, cursors, document)
            else:
                code = find(data, skips, lists[j], bits, document)
            if code >= 0:
                score += weights[j] * impacts[code]
        size = _offer(top[0], top[1], size, score, document)
    for left in range(size, 0, -1):
        scores[left - 1], results[left - 1] = top[0][0], top[1][0]
        _replace_worst(top[0], top[1], left - 1, top[0][left - 1], top[1][left - 1])


@compiled
def _open(data, lists, j, bits, used, cursors):
    """Stand at a list's first posting, or at its end where the list is not used."""
    begin, end, low = lists[j, BEGIN], lists[j, END], lists[j, LOW]
    unary = unary_begin(begin, lists[j, COUNT], low, bits)
    document, code, word, base, lows = posting(data, begin, unary, end, low, bits, 0, np.uint64(0), -64, 0)
    cursors[0, j, _AT], cursors[0, j, _DOCUMENT], cursors[0, j, _CODE] = 0, document if used else NO_DOCUMENT, code
    cursors[0, j, _WORD], cursors[0, j, _BASE], cursors[0, j, _LOWS] = np.int64(word), base, lows


@compiled
def _accumulate(data, lists, bits, impacts, weights, scale, block, until, cursors, sums, floor, threshold, over):
    """Add a block's postings to the sums; returns how many of its documents reach the threshold.

    A document is noted once, by the addend that takes it over, and never more of them than `over` has room for.
    Indices are unsigned where the loop is hot: signed ones are tested for counting from the end.
    """
    begin = block * BLOCK
    threshold += floor
    passed = 0
    for j in range(len(lists)):
        first, end, count, low = lists[j, BEGIN], lists[j, END], lists[j, COUNT], lists[j, LOW]
        top = lists[j, TOP]
        unary = unary_begin(first, count, low, bits)
        i, document, code = cursors[block, j, _AT], cursors[block, j, _DOCUMENT], cursors[block, j, _CODE]
        word, base, lows = np.uint64(cursors[block, j, _WORD]), cursors[block, j, _BASE], cursors[block, j, _LOWS]
        weight = weights[j] * scale
        while document < until:
            at = np.uint64(document - begin)
            before = max(sums[at], floor)
            # The scale holds for codes up to the list's highest; damaged bytes may hold others, and would overflow.
            after = before + (np.int32(weight * impacts[np.uint64(min(code, top))]) + np.int32(1))
            sums[at] = after
            if after >= threshold and before < threshold and passed < len(over):
                over[passed] = np.int64(at)
                passed += 1
            i += 1
            if i == count:
                document = NO_DOCUMENT
                break
            document, code, word, base, lows = posting(data, first, unary, end, low, bits, i, word, base, lows)
        following = block + 1
        cursors[following, j, _AT], cursors[following, j, _DOCUMENT], cursors[following, j, _CODE] = i, document, code
        cursors[following, j, _WORD], cursors[following, j, _BASE] = np.int64(word), base
        cursors[following, j, _LOWS] = lows
    return passed


@compiled
def _code(data, lists, j, bits, cursors, target):
    """The impact code of a document in a list, or -1; from where the list stood at the begin of its block."""
    begin, end, count, low = lists[j, BEGIN], lists[j, END], lists[j, COUNT], lists[j, LOW]
    unary = unary_begin(begin, count, low, bits)
    block = target // BLOCK
    i, document, code = cursors[block, j, _AT], cursors[block, j, _DOCUMENT], cursors[block, j, _CODE]
    word, base, lows = np.uint64(cursors[block, j, _WORD]), cursors[block, j, _BASE], cursors[block, j, _LOWS]
    while document < target:
        i += 1
        if i == count:
            return -1
        document, code, word, base, lows = posting(data, begin, unary, end, low, bits, i, word, base, lows)
    return code if document == target else -1


@compiled
def _forget(kept, keeping, threshold):
    """Drop what is below the threshold; returns how many are left."""
    left = 0
    for n in range(keeping):
        if kept[n, 1] >= threshold:
            kept[left, 0], kept[left, 1] = kept[n, 0], kept[n, 1]
            left += 1
    return left


@compiled
def _worse(value, document, other, other_document):
    """Whether the first comes later in a result: a lower value, or the same one and a later document."""
    return value < other or (value == other and document > other_document)


@compiled
def _offer(values, documents, size, value, document):
    """Put a document among the best, a heap with the worst first; returns how many there are then."""
    if size == len(values):
        if size and _worse(values[0], documents[0], value, document):
            _replace_worst(values, documents, size, value, document)
        return size
    position = size
    while position:
        above = (position - 1) >> 1
        if not _worse(value, document, values[above], documents[above]):
            break
        values[position], documents[position] = values[above], documents[above]
        position = above
    values[position], documents[position] = value, document
    return size + 1


@compiled
def _replace_worst(values, documents, size, value, document):
    """Take the worst out of a heap of `size` documents and put another in."""
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and _worse(values[child + 1], documents[child + 1], values[child], documents[child]):
            child += 1
        if not _worse(values[child], documents[child], value, document):
            break
        values[position], documents[position] = values[child], documents[child]
        position = child
    values[position], documents[position] = value, document
