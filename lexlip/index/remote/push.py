"""An index into an engine: every document once, in order, from where an earlier push stopped.

How far each segment has come is noted beside the collection every few seconds. Documents are written by their ids, so
what was sent after the last note is sent again and changes nothing. The next state of an index costs its new segments;
documents that it has no more are then looked for among all ids and removed. Whoever searches meanwhile sees some of
both states, but a first push only when it has ended.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from lexlip.errors import DamagedIndex, EngineError, IndexingError
from lexlip.index.index import Index
from lexlip.index.remote.card import Card, read_card, write_card, write_frequencies
from lexlip.index.remote.collection import MAX_ID, MAX_NOTE, Collection, Document
from lexlip.index.segment import Segment, SegmentEntry
from lexlip.index.store import Manifest
from lexlip.index.stored import stored_rows

_PROGRESS = "push"
_SECONDS = 5.0  # between notes
_POSTINGS = 200_000  # of an upsert: some megabytes, whatever documents are like
_BATCH = 1 << 18  # documents that are read at once


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        sent: documents.
        there_before: documents that earlier pushes had brought.
        deleted: documents that the index has no more.
        without_terms: documents that nothing can find, so that they are not sent.
        documents: in the engine now.
    """

    sent: int
    there_before: int
    deleted: int
    without_terms: int
    documents: int


def push(
    index: Index, collection: Collection, *, shards: int | None = None, workers: int = 4, overwrite: bool = False,
    progress: Callable[[int], object] = lambda documents: None,
) -> Pushed:  # fmt: skip
    """Bring a collection to the state of an index.

    Args:
        index: every byte of it is verified first.
        collection: of an engine; new, or pushed before.
        shards: that the engine divides a new one into.
        workers: requests at once.
        overwrite: remove what was pushed before.
        progress: told how many documents have arrived since it was called last.

    Raises:
        IndexingError: a number out of range, an index without documents, ids that engines do not take, documents of
            another model or kind of ids there.
        DamagedIndex: bytes that are not what was written.
        EngineError: the engine fails, or holds a collection that is not ours.
    """
    for name, number in (("workers", workers), ("shards", shards)):
        if number is not None and number < 1:
            raise IndexingError(f"--{name} {number}: at least 1")
    if not len(index):
        raise IndexingError(f"{index.folder} has no documents to push")
    if damage := index.verify():
        raise DamagedIndex(f"{index.folder}: {damage[0]}")
    _prepare(index, collection, shards, overwrite)
    work = _Push(index, collection)
    try:
        work.send(workers if collection.parallel else 1, progress)
    except EngineError as error:  # a note would wait for the engine as long again
        raise EngineError(f"{error}; pushed again, without --overwrite, it goes on where it stopped") from error
    except BaseException:
        with suppress(EngineError):
            work.note()
        raise
    collection.finish()
    return work.finished()


def _prepare(index: Index, collection: Collection, shards: int | None, overwrite: bool) -> None:
    """See to a collection that can take the documents."""
    card, exists = read_card(collection), collection.exists()
    if exists and card is None:
        raise EngineError(
            f"{collection.where} exists and was not made by lexlip index push: choose another name with --collection"
        )
    if overwrite and card is not None:
        collection.drop()
        card, exists = None, False
    if card is not None and exists:
        _require_same(index, collection, card.manifest)
    if not exists:
        write_card(collection, Card(index.manifest, len(index), complete=False))
        collection.write_note(_PROGRESS, "{}")
        collection.create(index.manifest.settings.ids, shards)


def _require_same(index: Index, collection: Collection, there: Manifest) -> None:
    mine = index.manifest
    if there.settings.ids != mine.settings.ids:
        raise IndexingError(
            f"{collection.where} has ids of the kind {there.settings.ids}, {index.folder} of the kind "
            f"{mine.settings.ids}: --overwrite, or another --collection"
        )
    stamps = [manifest.model.fingerprint if manifest.model else "" for manifest in (there, mine)]
    if stamps[0] != stamps[1]:
        raise IndexingError(
            f"{collection.where} has vectors of {there.model or 'a model that is not known'}, {index.folder} of "
            f"{mine.model or 'a model that is not known'}: --overwrite, or another --collection"
        )


class _Push:
    """How far each segment has come: [documents sent, whether these are all, which were deleted then]."""

    def __init__(self, index: Index, collection: Collection):
        self._index, self._collection = index, collection
        noted = _noted(collection)
        before = noted.get("parts", {})
        self._expected = noted.get("documents", 0)  # in the engine, if nothing else writes to it
        # Whether the engine may hold documents that the index has no more.
        self._stale = noted.get("stale", False) or not before.keys() <= set(map(_key, index.manifest.segments))
        self._parts = {}
        for entry in index.manifest.segments:
            sent, whole, deletions = before.get(_key(entry), [0, False, _deletions(entry)])
            if deletions != _deletions(entry):
                self._stale = True
                sent = sent if whole else 0  # which are the first of a segment depends on what is deleted
            self._parts[_key(entry)] = [sent, whole, _deletions(entry)]
        self._before = sum(part[0] for part in self._parts.values())
        self.sent = 0
        self.note()

    def note(self) -> None:
        """Write it down."""
        text = json.dumps({"documents": self._expected, "stale": self._stale, "parts": self._parts})
        if len(text) > MAX_NOTE:
            raise IndexingError(f"{self._index.folder} has too many segments to push: lexlip index merge it first")
        self._collection.write_note(_PROGRESS, text)
        self._last_note = time.monotonic()

    def send(self, workers: int, progress: Callable[[int], object]) -> None:
        """Send what is missing, some requests at once; what is noted has arrived, and all before it."""
        waiting: deque[tuple[Future, list, int]] = deque()

        def arrived() -> None:
            future, part, number = waiting.popleft()
            future.result()
            part[0] += number
            self.sent += number
            self._expected += number
            progress(number)
            if time.monotonic() - self._last_note > _SECONDS:
                self.note()

        progress(self._before)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for segment, entry in zip(self._index.segments, self._index.manifest.segments):
                    part = self._parts[_key(entry)]
                    if part[1]:
                        continue
                    for documents in _batches(self._documents(segment, part[0]), self._collection.rows):
                        waiting.append((pool.submit(self._collection.upsert, documents), part, len(documents)))
                        if len(waiting) > workers:
                            arrived()
                    while waiting:
                        arrived()
                    part[1] = True
            finally:
                for future, _, _ in waiting:
                    future.cancel()

    def finished(self) -> Pushed:
        """Remove what the index has no more, check the number, and publish the state."""
        index, collection = self._index, self._collection
        deleted = 0
        for ids in collection.ids() if self._stale else ():
            gone = [id for id in ids if not index.holds(id)]
            for first in range(0, len(gone), collection.rows):
                collection.delete(gone[first : first + collection.rows])
            deleted += len(gone)
        if deleted:
            collection.finish()
        count = collection.count()
        if count > len(index) or (not self._stale and count != self._expected):
            raise EngineError(
                f"{collection.where} holds {count:,} documents, not the {self._expected:,} that were pushed: does "
                "another program write to it? --overwrite pushes all of them again"
            )
        terms, counts = index.document_frequencies()
        pieces = write_frequencies(collection, index.manifest.generation, terms, counts)
        write_card(collection, Card(index.manifest, len(index), complete=True, pieces=pieces))
        self._expected, self._stale = count, False
        self.note()
        return Pushed(self.sent, self._before, deleted, len(index) - count, count)

    def _documents(self, segment: Segment, skipped: int) -> Iterator[Document]:
        """A segment's documents that have terms, from one on."""
        alone = Index(self._index.folder, self._index.manifest, [segment])
        filled = (
            (rows.source, id, terms, weights)
            for rows in stored_rows(alone, _BATCH)
            for id, terms, weights in rows.documents()
            if len(terms)
        )
        for source, id, terms, weights in islice(filled, skipped, None):
            if isinstance(id, str) and not 0 < len(id.encode()) <= MAX_ID:
                raise IndexingError(f"{source}: id {id[:40]!r}...: engines take ids of 1 to {MAX_ID} bytes")
            order = terms.argsort()
            yield Document(id, terms[order].tolist(), weights[order].tolist())


def _noted(collection: Collection) -> dict:
    """What an earlier push noted."""
    try:
        noted = json.loads(collection.note(_PROGRESS) or "{}")
        parts = noted.get("parts", {})
        good = all(
            [type(value) for value in part] == [int, bool, str] and part[0] >= 0 for part in parts.values()
        ) and type(noted.get("documents", 0)) is int  # fmt: skip
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        raise EngineError(f"{collection.where}: the notes of an earlier push are not what was written: --overwrite")
    return noted


def _batches(documents: Iterator[Document], most: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    postings = 0
    for document in documents:
        if batch and (len(batch) == most or postings + len(document.terms) > _POSTINGS):
            yield batch
            batch, postings = [], 0
        batch.append(document)
        postings += len(document.terms)
    if batch:
        yield batch


def _key(entry: SegmentEntry) -> str:
    """Files never change, and their names are random."""
    return f"{entry.file.name}:{entry.file.crc32:08x}"


def _deletions(entry: SegmentEntry) -> str:
    return entry.deletions.name if entry.deletions else ""
