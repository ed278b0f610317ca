"""A segment as a source of postings, for merging."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexlip.index.codec import decode
from lexlip.index.compiled import compiled
from lexlip.index.layout import COUNT
from lexlip.index.segment import Segment


@dataclass
class DecodedSegment:
    """See `lexlip.index.runs.Source`. Weights are the ones that the segment's impacts stand for.

    Attributes:
        segment: whose bytes were verified before.
        documents: (segment.documents,) int64, the document that each of its documents becomes, -1 where it is dropped.
    """

    segment: Segment
    documents: np.ndarray

    def __post_init__(self):
        counts = np.zeros(self.segment.term_limit, np.int64)
        counts[self.segment.terms] = self.segment.table[:, COUNT]
        self.offsets = np.concatenate([[0], counts.cumsum()])

    def postings(self, first: int, last: int) -> np.ndarray:
        """uint64 postings of terms first to last - 1, by term."""
        begin, end = np.searchsorted(self.segment.terms, [first, last])
        keys = np.empty(self.offsets[last] - self.offsets[first], np.uint64)
        weights = self.segment.impacts.astype(np.float16).view(np.uint16)
        _keys(self.segment.data, self.segment.table[begin:end], self.segment.bits, weights, keys)
        return keys


@compiled
def _keys(data, table, bits, weights, keys):
    longest = 0
    for row in range(len(table)):
        longest = max(longest, table[row, COUNT])
    documents, codes = np.empty(longest, np.int64), np.empty(longest, np.int64)
    place = 0
    for row in range(len(table)):
        count = decode(data, table[row], bits, documents, codes)
        for i in range(count):
            keys[place] = np.uint64(documents[i]) << np.uint64(16) | np.uint64(weights[codes[i]])
            place += 1
