"""An index's documents as they are stored: rows of terms and weights again, to hand on to other engines.

Costs two passes over a segment's postings per so many documents; memory is that of their rows and of the ids.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lexlip.index import id_column
from lexlip.index.codec import decode
from lexlip.index.compiled import compiled
from lexlip.index.index import Index
from lexlip.index.layout import COUNT
from lexlip.index.segment import Segment
from lexlip.index.vectors import SparseRows

DOCUMENTS = 1 << 17  # per batch


def stored_rows(index: Index, documents: int = DOCUMENTS) -> Iterator[SparseRows]:
    """All documents that are not deleted, segment by segment, with the weights that scores are made of.

    An engine that does not round them has the same scores; so has an index that is built from them with one bit more
    where the segments have codebooks of their own.

    Args:
        index: opened.
        documents: per batch at most.
    """
    for segment in index.segments:
        ids = segment.all_ids()
        alive = segment.alive()
        for first in range(0, segment.documents, documents):
            last = min(first + documents, segment.documents)
            offsets, terms, weights = _transposed(segment, first, last)
            keep = alive[first:last]
            counts = np.diff(offsets)
            used = np.repeat(keep, counts)
            kept = np.concatenate([[0], counts[keep].cumsum()])
            chosen = id_column.take(ids, np.flatnonzero(keep) + first)
            yield SparseRows(chosen, kept, terms[used], weights[used], str(segment.file.path))


def _transposed(segment: Segment, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (n + 1,), terms and float16 weights of documents first to last - 1; terms ascending in each row."""
    longest = int(segment.table[:, COUNT].max()) if len(segment.table) else 0
    buffers = np.empty(longest, np.int64), np.empty(longest, np.int64)
    counts = np.zeros(last - first + 1, np.int64)
    _count(segment.data, segment.table, segment.bits, first, last, *buffers, counts)
    offsets = counts.cumsum()
    terms, codes = np.empty(offsets[-1], np.uint32), np.empty(offsets[-1], np.uint16)
    places = offsets[:-1].copy()
    _fill(segment.data, segment.table, segment.bits, segment.terms, first, last, *buffers, places, terms, codes)
    return offsets, terms, segment.impacts.astype(np.float16)[codes]


@compiled
def _count(data, table, bits, first, last, documents, codes, counts):
    for row in range(len(table)):
        for i in range(decode(data, table[row], bits, documents, codes)):
            if first <= documents[i] < last:
                counts[documents[i] - first + 1] += 1


@compiled
def _fill(data, table, bits, list_terms, first, last, documents, codes, places, terms, out):
    for row in range(len(table)):
        for i in range(decode(data, table[row], bits, documents, codes)):
            if first <= documents[i] < last:
                place = places[documents[i] - first]
                terms[place], out[place] = list_terms[row], codes[i]
                places[documents[i] - first] += 1
