"""What single documents hold, although an index is ordered by term: for the words of a page of results.

Every list is looked at. A short one is read once for all documents, of a long one each document's posting is found by
the skips: 60 documents of 10,000 with 30 terms each take 3 ms, of 300,000 take 20 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lexlip.index.codec import find, posting, unary_begin
from lexlip.index.compiled import compiled
from lexlip.index.index import Index
from lexlip.index.layout import BEGIN, COUNT, END, LOW, SKIP_EVERY
from lexlip.index.queries import Bag


def document_terms(index: Index, ids: Sequence[int | str], top_k: int | None = None) -> list[Bag]:
    """Terms and stored weights of documents, heaviest first.

    Args:
        ids: of documents that are not deleted.
        top_k: how many terms of each at most; None: all.

    Raises:
        IndexingError: no document has such an id.
        DamagedIndex: a list or an id that is not what was written.
    """
    places = [index.place(id) for id in ids]
    rows: list[Bag] = [(np.empty(0, np.uint32), np.empty(0))] * len(ids)
    for number, segment in enumerate(index.segments):
        mine = sorted((document, row) for row, (of, document) in enumerate(places) if of == number)
        if not mine:
            continue
        segment.require_lists()
        codes = np.full((len(mine), len(segment.table)), -1, np.int16)
        documents = np.array([document for document, _ in mine], np.int64)
        _codes_of(segment.data, segment.skips, segment.table, segment.bits, documents, codes)
        for (_, row), own in zip(mine, codes):
            held = np.flatnonzero(own >= 0)
            weights = np.asarray(segment.impacts)[own[held]].astype(np.float64)
            order = np.argsort(-weights, kind="stable")[:top_k]
            rows[row] = np.asarray(segment.terms)[held[order]].astype(np.uint32), weights[order]
    return rows


@compiled
def _codes_of(data, skips, table, bits, documents, codes):
    """Fill (D, L) impact codes of D documents, ascending, in all L lists; what a list does not hold stays as it is."""
    for row in range(len(table)):
        entry = table[row]
        begin, end, count, low = entry[BEGIN], entry[END], entry[COUNT], entry[LOW]
        if count > len(documents) * SKIP_EVERY:
            for number in range(len(documents)):
                codes[number, row] = find(data, skips, entry, bits, documents[number])
            continue
        unary = unary_begin(begin, count, low, bits)
        word, base, lows, number = np.uint64(0), np.int64(-64), np.int64(0), 0
        for i in range(count):
            document, code, word, base, lows = posting(data, begin, unary, end, low, bits, i, word, base, lows)
            while number < len(documents) and documents[number] < document:
                number += 1
            if number == len(documents):
                break
            if documents[number] == document:
                codes[number, row] = code
