"""Postings sorted by term without holding them all: runs on disk, read together term by term.

A posting is a uint64, row << 16 | bits of the float16 weight. A run is a part of the rows, sorted by term; a segment
is encoded from several of them, a few million postings at a time. Merging segments works the same way, with segments
as the sources of postings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index import impacts
from lexlip.index.codec import decode
from lexlip.index.compiled import compiled
from lexlip.index.layout import COUNT
from lexlip.index.segment import Segment
from lexlip.sparse import Ids, SparseRows, offsets_of

RUN_POSTINGS = 1 << 22  # 4.2 million: 140 MB while a run is sorted, 34 MB on disk
_GROUP_POSTINGS = 1 << 21  # encoded at a time


@dataclass
class SortedRun:
    """A file of postings by term.

    Attributes:
        documents: (rows,) int64, the document that each row becomes, -1 where it is left out.
        offsets: (terms + 1,) int64, how many postings come before each term.
    """

    path: Path
    documents: np.ndarray
    offsets: np.ndarray

    def postings(self, first: int, last: int) -> np.ndarray:
        """uint64 postings of terms first to last - 1, by term."""
        begin, end = self.offsets[first], self.offsets[last]
        return np.fromfile(self.path, "<u8", int(end - begin), offset=8 * int(begin))


@dataclass
class DecodedSegment:
    """As `SortedRun`, a segment; all its lists are looked at. Weights are those that its impacts stand for.

    Raises:
        DamagedIndex: a list that is not what was written.
    """

    segment: Segment
    documents: np.ndarray

    def __post_init__(self):
        self.segment.require_lists()
        self.offsets = offsets_of(np.bincount(self.segment.terms, self.segment.table[:, COUNT]))

    def postings(self, first: int, last: int) -> np.ndarray:
        begin, end = np.searchsorted(self.segment.terms, [first, last])
        table = self.segment.table[begin:end]
        keys = np.empty(table[:, COUNT].sum(), np.uint64)
        weights = self.segment.impacts.astype(np.float16).view(np.uint16)
        _decode(self.segment.data, table, self.segment.bits, weights, keys)
        return keys


class RunWriter:
    """Takes rows, numbered as they come, and writes runs into a new folder.

    Attributes:
        rows, postings: how many came.
        ids: theirs, in parts.
        histogram: (2^16,) of the float16 weights that came.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        self.rows = self.postings = 0
        self.ids: list[Ids] = []
        self.histogram = np.zeros(1 << 16, np.int64)
        self._folder = folder
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_postings = 0
        self._runs: list[tuple[Path, np.ndarray]] = []

    def add(self, rows: SparseRows) -> None:
        """Append rows. Weights of 0 are left out."""
        rows = rows.select(rows.weights > 0)
        numbers = np.arange(self.rows, self.rows + len(rows), dtype=np.uint64) << np.uint64(16)
        keys = np.repeat(numbers, np.diff(rows.offsets)) | rows.weights.view(np.uint16)
        self.rows += len(rows)
        self.postings += len(keys)
        self.ids.append(rows.ids)
        self.histogram += impacts.histogram(rows.weights)
        for begin in range(0, len(keys), RUN_POSTINGS):
            part = slice(begin, begin + RUN_POSTINGS)
            if self._waiting_postings + len(keys[part]) > RUN_POSTINGS:
                self._spill()
            self._waiting.append((rows.terms[part], keys[part]))
            self._waiting_postings += len(keys[part])

    def finish(self, documents: np.ndarray) -> list[SortedRun]:
        """The runs of all rows, given the document that each row becomes."""
        self._spill()
        return [SortedRun(path, documents, offsets) for path, offsets in self._runs]

    def remove(self) -> None:
        """Remove the runs."""
        shutil.rmtree(self._folder)

    def _spill(self) -> None:
        if not self._waiting_postings:
            return
        terms = np.concatenate([terms for terms, _ in self._waiting])
        keys = np.concatenate([keys for _, keys in self._waiting])
        self._waiting, self._waiting_postings = [], 0
        offsets, by_term = counting_sort(keys, terms)
        path = self._folder / f"run-{len(self._runs)}"
        with open(path, "wb") as file:  # tofile does not say why it failed
            file.write(by_term.data)
        self._runs.append((path, offsets))


def counting_sort(values: np.ndarray, bins: np.ndarray, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n,) values by their (n,) bins, at least `number`, in the old order inside each.

    Returns:
        Where each bin begins and the last one ends, and the sorted values.
    """
    offsets = offsets_of(np.bincount(bins, minlength=number))
    by_bin = np.empty_like(values)
    _move(values, bins, offsets[:-1].copy(), by_bin)
    return offsets, by_bin


def groups(
    sources: Sequence[SortedRun | DecodedSegment], ids: Ids
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The postings of all sources together, some terms at a time in ascending order.

    Args:
        ids: of the documents, for the error.

    Yields:
        (L,) uint32 terms; (L + 1,) int64, where the list of each begins in the keys, none is empty; and the keys,
        uint64, document << 16 | bits of the weight, ascending in each list.

    Raises:
        IndexingError: a document holds a term twice.
    """
    vocabulary = max((len(source.offsets) for source in sources), default=1) - 1
    before = np.zeros(vocabulary + 1, np.int64)
    for source in sources:
        # A source with few terms ends early: its last offset counts for all further ones.
        source.offsets = np.pad(source.offsets, (0, vocabulary + 1 - len(source.offsets)), mode="edge")
        before += source.offsets
    first = 0
    while first < vocabulary:
        last = int(np.searchsorted(before, before[first] + _GROUP_POSTINGS, "right")) - 1
        last = min(max(last, first + 1), vocabulary)
        keys = np.empty(before[last] - before[first], np.uint64)
        filled = before[first:last] - before[first]
        for source in sources:
            _gather(
                source.postings(first, last), np.diff(source.offsets[first : last + 1]), source.documents, keys, filled
            )
        begins = before[first : last + 1] - before[first]
        offsets = np.zeros(last - first + 1, np.int64)
        twice = _sort(keys, begins, filled, offsets)
        if twice >= 0:
            id, term = ids[int(keys[twice] >> np.uint64(16))], first + np.searchsorted(offsets, twice, "right") - 1
            raise IndexingError(f"id {id} holds term {term} twice: add its weights up")
        used = np.flatnonzero(np.diff(offsets))
        if len(used):
            yield (used + first).astype(np.uint32), np.append(offsets[used], offsets[-1]), keys[: offsets[-1]]
        first = last


@compiled
def _move(values, bins, positions, by_bin):
    for i in range(len(values)):
        by_bin[positions[bins[i]]] = values[i]
        positions[bins[i]] += 1


@compiled
def _decode(data, table, bits, weights, keys):
    longest = 0
    for row in range(len(table)):
        longest = max(longest, table[row, COUNT])
    documents, codes = np.empty(longest, np.int64), np.empty(longest, np.int64)
    position = 0
    for row in range(len(table)):
        for i in range(decode(data, table[row], bits, documents, codes)):
            keys[position] = np.uint64(documents[i]) << np.uint64(16) | np.uint64(weights[codes[i]])
            position += 1


@compiled
def _gather(postings, counts, documents, keys, filled):
    """Append postings to each term's part of `keys`, rows replaced by documents; rows that are left out are dropped."""
    i = 0
    for term in range(len(counts)):
        for _ in range(counts[term]):
            document = documents[np.int64(postings[i] >> np.uint64(16))]
            if document >= 0:
                keys[filled[term]] = np.uint64(document) << np.uint64(16) | (postings[i] & np.uint64(0xFFFF))
                filled[term] += 1
            i += 1


@compiled
def _sort(keys, begins, filled, offsets):
    """Sort each term's postings and close the gaps of dropped ones; returns where a document is repeated, or -1."""
    position = 0
    twice = -1
    for term in range(len(filled)):
        begin, end = begins[term], filled[term]
        ascending = True
        for i in range(begin + 1, end):
            if keys[i] < keys[i - 1]:
                ascending = False
                break
        if not ascending:
            keys[begin:end] = np.sort(keys[begin:end])
        offsets[term] = position
        for i in range(begin, end):
            if i > begin and twice < 0 and keys[i] >> np.uint64(16) == keys[i - 1] >> np.uint64(16):
                twice = position
            keys[position] = keys[i]
            position += 1
    offsets[-1] = position
    return twice
