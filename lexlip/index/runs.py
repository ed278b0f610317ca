"""Postings sorted by term without holding them all: runs on disk, read together term by term.

A posting is a uint64, row << 16 | bits of the float16 weight. A run is a share of the rows, sorted by term; a segment
is encoded from several of them, a few million postings at a time. Merging segments works the same way, each segment
being one more source of postings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index import impacts
from lexlip.index.compiled import compiled
from lexlip.index.vectors import SparseRows

RUN_POSTINGS = 1 << 22  # 4.2 million: 140 MB while a run is sorted, 34 MB on disk
_GROUP_POSTINGS = 1 << 21  # encoded at a time


class Source(Protocol):
    """Postings by term.

    Attributes:
        offsets: (terms + 1,) int64, how many postings come before each term.
        documents: (rows,) int64, the document that each row becomes, -1 where it is left out.
    """

    offsets: np.ndarray
    documents: np.ndarray

    def postings(self, first: int, last: int) -> np.ndarray:
        """uint64 postings of terms first to last - 1, by term."""


@dataclass
class Run:
    """A file of postings; see `Source`."""

    path: Path
    offsets: np.ndarray
    documents: np.ndarray

    def postings(self, first: int, last: int) -> np.ndarray:
        begin, end = self.offsets[first], self.offsets[last]
        return np.fromfile(self.path, "<u8", int(end - begin), offset=8 * int(begin))


class RunWriter:
    """Takes rows, numbered as they come, and writes runs into a folder.

    Attributes:
        rows: how many came.
        histogram: (2^16,) of the float16 weights that came.
    """

    def __init__(self, folder: Path, run_postings: int = RUN_POSTINGS):
        self.rows = 0
        self.histogram = np.zeros(1 << 16, np.int64)
        self._folder, self._run_postings = folder, run_postings
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_postings = 0
        self._runs: list[tuple[Path, np.ndarray]] = []

    def add(self, rows: SparseRows) -> None:
        """Append rows. Weights of 0 are left out."""
        keys = np.repeat(np.arange(self.rows, self.rows + len(rows), dtype=np.uint64), np.diff(rows.offsets))
        keys = keys << np.uint64(16) | rows.weights.view(np.uint16)
        used = (rows.weights > 0).nonzero()[0]
        keys, terms = (keys, rows.terms) if len(used) == len(keys) else (keys[used], rows.terms[used])
        self.rows += len(rows)
        self.histogram += impacts.histogram(rows.weights)
        self.histogram[[0, 0x8000]] = 0  # both zeros of floating point
        for begin in range(0, len(keys), self._run_postings):
            part = slice(begin, begin + self._run_postings)
            if self._waiting_postings + len(keys[part]) > self._run_postings:
                self._spill()
            self._waiting.append((terms[part], keys[part]))
            self._waiting_postings += len(keys[part])

    def finish(self, documents: np.ndarray) -> list[Run]:
        """The runs of all rows, given the document that each row becomes."""
        self._spill()
        return [Run(path, offsets, documents) for path, offsets in self._runs]

    def remove(self) -> None:
        """Remove the runs."""
        shutil.rmtree(self._folder)

    def _spill(self) -> None:
        if not self._waiting_postings:
            return
        terms = np.concatenate([terms for terms, _ in self._waiting])
        keys = np.concatenate([keys for _, keys in self._waiting])
        self._waiting, self._waiting_postings = [], 0
        offsets = np.concatenate([[0], np.bincount(terms).cumsum()])
        by_term = np.empty_like(keys)
        _by_term(terms, keys, offsets[:-1].copy(), by_term)
        path = self._folder / f"run-{len(self._runs)}"
        by_term.tofile(path)
        self._runs.append((path, offsets))


@dataclass
class Group:
    """Postings of several terms as `lexlip.index.codec.encode` takes them.

    Attributes:
        terms: (L,) uint32 ascending.
        offsets: (L + 1,) where each term's list begins in `keys`; no list is empty.
        keys: uint64, document << 16 | bits of the weight, ascending in each list.
    """

    terms: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray


def groups(sources: list[Source], group_postings: int = _GROUP_POSTINGS) -> Iterator[Group]:
    """The postings of all sources together, term by term in ascending order.

    Raises:
        IndexingError: a document holds a term twice. Its message names the document's number, in its second argument.
    """
    vocabulary = max((len(source.offsets) for source in sources), default=1) - 1
    total = np.zeros(vocabulary, np.int64)
    for source in sources:
        # A source with few terms ends early: its last offset counts for all further ones.
        source.offsets = np.pad(source.offsets, (0, vocabulary + 1 - len(source.offsets)), mode="edge")
        total += np.diff(source.offsets)
    before = np.concatenate([[0], total.cumsum()])
    first = 0
    while first < vocabulary:
        last = int(np.searchsorted(before, before[first] + group_postings, "right")) - 1
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
            raise TwiceError(
                int(keys[twice] >> np.uint64(16)), first + int(np.searchsorted(offsets, twice, "right")) - 1
            )
        used = np.flatnonzero(np.diff(offsets))
        if len(used):
            yield Group((used + first).astype(np.uint32), np.append(offsets[used], offsets[-1]), keys[: offsets[-1]])
        first = last


class TwiceError(IndexingError):
    """A document holds a term twice.

    Attributes:
        document, term: their numbers.
    """

    def __init__(self, document: int, term: int):
        super().__init__(f"document {document} holds term {term} twice")
        self.document, self.term = document, term


@compiled
def _by_term(terms, keys, places, by_term):
    for i in range(len(terms)):
        term = terms[i]
        by_term[places[term]] = keys[i]
        places[term] += 1


@compiled
def _gather(postings, counts, documents, keys, filled):
    """Append postings to each term's place in `keys`, rows replaced by documents, those left out dropped."""
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
    """Sort each term's postings and close the places of dropped ones; returns a place that repeats a document or -1."""
    place = 0
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
        offsets[term] = place
        for i in range(begin, end):
            if i > begin and twice < 0 and keys[i] >> np.uint64(16) == keys[i - 1] >> np.uint64(16):
                twice = place
            keys[place] = keys[i]
            place += 1
    offsets[-1] = place
    return twice
