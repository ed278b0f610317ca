"""Building an index and changing it: build, add, delete, merge.

Each of them is one transaction: it appears whole or not at all. Memory is that of one segment's ids and of some million
postings, however many documents there are; postings go through runs on the disk (`lexlip.index.runs`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import id_column, impacts
from lexlip.index.check import MAX_DOCUMENTS, MAX_EMPTY
from lexlip.index.origin import ModelStamp, Source
from lexlip.index.segment import Segment, SegmentEntry, write_deletions, write_segment
from lexlip.index.store import IndexSettings, Manifest, Transaction, open_segments, transaction
from lexlip.sparse import Ids, SparseRows, as_ids, kind_of, take_ids

if TYPE_CHECKING:
    from lexlip.index.runs import RunWriter

log = logging.getLogger(__name__)

IMPACT_BITS, IMPACT_SCALE, SEGMENT_DOCUMENTS = 9, "fitted", 1 << 22
MAX_SEGMENTS = 32  # an `add` that leaves more merges the smallest: a search's time and its open files go with them
_AT_ONCE = 8  # segments that are merged in one step, whose files are open together


@dataclass(frozen=True)
class Change:
    """What a command did.

    Attributes:
        generation: the state it published.
        documents: alive in the index now.
        added, replaced, deleted: documents. One that is replaced is also added.
        segments: of the index now.
    """

    generation: int
    documents: int
    added: int = 0
    replaced: int = 0
    deleted: int = 0
    segments: int = 0


def build(
    folder: str | Path, batches: Iterable[SparseRows], *, impact_bits: int = IMPACT_BITS,
    impact_scale: str = IMPACT_SCALE, segment_documents: int = SEGMENT_DOCUMENTS, overwrite: bool = False,
    force: bool = False,
) -> Change:  # fmt: skip
    """Build an index from all rows.

    Args:
        folder: a new or an empty one.
        batches: rows, read once.
        impact_bits: of a stored weight, 1 to 12.
        impact_scale: "fitted" or "linear"; see `lexlip.index.impacts`.
        segment_documents: documents of a segment at most; memory while building grows with it.
        overwrite: replace an index that is in the folder; its readers keep the old state until they open the index
            again.
        force: take vectors of several models; the first is remembered.

    Raises:
        IndexingError: rows that cannot be stored, an id or a document's term twice, vectors of two models, or a folder
            that holds something.
    """
    impacts.check(impact_bits, impact_scale)
    if not 1 <= segment_documents <= MAX_DOCUMENTS:
        raise IndexingError(f"segment_documents={segment_documents}: it must be 1 to {MAX_DOCUMENTS:,}")
    with transaction(Path(folder), create=True) as work:
        if work.has_index() and not overwrite:
            raise IndexingError(f"{folder} already holds an index: add to it, overwrite it, or name another folder")
        settings = IndexSettings("", impact_bits, impact_scale, segment_documents)
        rows = _Rows(batches, settings, None, (), force, adopt=True)
        entries = rows.write(work, codebook=None)
        return _publish(work, rows, entries, added=_documents(entries))


def add(
    folder: str | Path, batches: Iterable[SparseRows], *, force: bool = False,
    without: Sequence[int] | Sequence[str] | Ids = (),
) -> Change:  # fmt: skip
    """Add documents in segments of their own. One whose id the index holds already replaces the old one.

    More than MAX_SEGMENTS segments are not left behind: the smallest are merged, as `merge` does it.

    Args:
        force: take vectors of another model than the index has.
        without: ids of documents to delete in the same change; ids that the index does not hold are ignored.

    Raises:
        IndexingError: no index, rows that cannot be stored, ids of another kind, an id or a document's term twice,
            vectors of another model.
        DamagedIndex: the ids of a segment are damaged.
    """
    with transaction(Path(folder)) as work:
        manifest = work.manifest
        rows = _Rows(batches, manifest.settings, manifest.model, manifest.sources, force, adopt=not manifest.segments)
        new = rows.write(work, _largest_codebook(open_segments(work.folder, manifest)))
        old, replaced, deleted = list(manifest.segments), 0, 0
        if len(without):
            old, deleted = _without(work, rows.settings, old, as_ids(without))
        for entry in new:
            ids = Segment(work.folder, entry, rows.settings.ids).all_ids()
            old, count = _without(work, rows.settings, old, ids, partial(_tell_other_root, rows.sources, entry))
            replaced += count
        entries = _fewer(work, rows.settings, old + new)
        return _publish(work, rows, entries, added=_documents(new), replaced=replaced, deleted=deleted)


def delete(folder: str | Path, ids: Sequence[int] | Sequence[str] | Ids) -> Change:
    """Delete documents by their ids; ids that the index does not hold are ignored.

    Raises:
        IndexingError: no index, one id instead of a list, or ids of another kind than the index has.
        DamagedIndex: the ids of a segment are damaged.
    """
    ids = as_ids(ids)
    with transaction(Path(folder)) as work:
        manifest = work.manifest
        settings = manifest.settings
        if len(ids) and settings.ids and kind_of(ids) != settings.ids:
            raise IndexingError(f"the ids of this index are {settings.ids}, not {kind_of(ids)}")
        entries, deleted = _without(work, settings, manifest.segments, ids)
        return _publish(work, manifest, entries, deleted=deleted)


def merge(folder: str | Path) -> Change:
    """Merge all segments into as few as `segment_documents` allows, and drop what is deleted.

    Weights stay as they are stored where segments share a codebook. Where they do not, they are rounded once more: to
    the codebook of the largest, whose own weights then stay, or to a new one if that serves the others badly.

    Raises:
        IndexingError: no index.
        DamagedIndex: a segment that is not what was written.
    """
    with transaction(Path(folder)) as work:
        manifest = work.manifest
        settings = manifest.settings
        groups: list[list[SegmentEntry]] = []  # segments that become one, oldest first
        for entry in manifest.segments:
            Segment(work.folder, entry, settings.ids)  # also one that stays as it is must be sound
            if groups and _documents([*groups[-1], entry]) <= settings.segment_documents:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        entries = [
            group[0] if len(group) == 1 and not group[0].deleted else _merge(work, settings, group) for group in groups
        ]
        return _publish(work, manifest, entries)


def _fewer(work: Transaction, settings: IndexSettings, entries: list[SegmentEntry]) -> list[SegmentEntry]:
    """At most MAX_SEGMENTS of them, if `segment_documents` allows: half of that, and the smallest as one.

    So a document of many small additions is merged a number of times that grows with the logarithm of the documents.
    """
    if len(entries) <= MAX_SEGMENTS:
        return entries
    smallest = sorted(entries, key=lambda entry: _documents([entry]))[: len(entries) - MAX_SEGMENTS // 2]
    while len(smallest) > 1 and _documents(smallest) > settings.segment_documents:
        smallest.pop()
    if len(smallest) < 2:
        return entries
    return [entry for entry in entries if entry not in smallest] + [_merge(work, settings, smallest)]


def _merge(work: Transaction, settings: IndexSettings, group: list[SegmentEntry]) -> SegmentEntry:
    """One segment of many, a few at a time."""
    histogram, largest = np.zeros(1 << 16, np.int64), None
    for entry in group:
        segment = Segment(work.folder, entry, settings.ids)
        damage = segment.damage()
        if damage:
            raise DamagedIndex(damage[0])
        histogram += segment.histogram()
        if largest is None or segment.postings > largest[0]:
            largest = segment.postings, segment.codebook()
    # One codebook for all steps: weights are rounded once.
    codebook = impacts.choose(histogram, settings.impact_bits, settings.impact_scale, largest[1] if largest else None)
    given = {entry.file.name for entry in group}
    while True:
        parts = [group[first : first + _AT_ONCE] for first in range(0, len(group), _AT_ONCE)]
        group = [_merge_few(work, settings, part, codebook) for part in parts]
        for entry in (entry for part in parts for entry in part if entry.file.name not in given):
            (work.folder / entry.file.name).unlink(missing_ok=True)  # of the step before
        if len(group) == 1:
            return group[0]


def _merge_few(
    work: Transaction, settings: IndexSettings, group: list[SegmentEntry], codebook: impacts.Codebook
) -> SegmentEntry:
    from lexlip.index.runs import DecodedSegment

    segments = [Segment(work.folder, entry, settings.ids) for entry in group]
    alive = [np.flatnonzero(segment.alive()) for segment in segments]
    ids, documents = id_column.ascending([take_ids(segment.ids.all(), rows) for segment, rows in zip(segments, alive)])
    twice = id_column.repeated(ids)
    if twice.any():
        raise DamagedIndex(f"{work.folder}: id {ids[int(twice.argmax())]} is in two segments")
    sources = []
    for segment, rows, numbers in zip(segments, alive, np.split(documents, np.cumsum([len(rows) for rows in alive]))):
        becomes = np.full(segment.documents, -1)
        becomes[rows] = numbers
        sources.append(DecodedSegment(segment, becomes))
    histogram = np.sum([segment.histogram() for segment in segments], axis=0)
    file = write_segment(work.new_path(".seg"), ids, sources, codebook, histogram)
    return SegmentEntry(file, len(ids), sources=tuple(sorted({number for entry in group for number in entry.sources})))


def _largest_codebook(segments: Iterable[Segment]) -> impacts.Codebook | None:
    most, codebook = -1, None
    for segment in segments:  # one at a time, so that no more than one file is open
        if segment.postings > most:
            most, codebook = segment.postings, segment.codebook()
    return codebook


@dataclass
class _Rows:
    """The rows that a change takes, and what they tell about themselves.

    Attributes:
        batches: read once.
        settings: of the index; the first rows say of which kind its ids are.
        model: that made the vectors.
        sources: what was encoded, of the index and then of the rows.
        force: take those of another model.
        adopt: remember the model of the first rows.
    """

    batches: Iterable[SparseRows]
    settings: IndexSettings
    model: ModelStamp | None
    sources: tuple[Source, ...]
    force: bool
    adopt: bool
    _of_segment: set[int] = field(default_factory=set)

    def write(self, work: Transaction, codebook: impacts.Codebook | None) -> list[SegmentEntry]:
        """Segments of all rows."""
        from lexlip.index.runs import RunWriter

        entries: list[SegmentEntry] = []
        runs: RunWriter | None = None
        for batch in _batches(self.batches):
            if not len(batch):
                continue
            begin = 0
            while begin < len(batch):
                runs = runs or RunWriter(work.new_path(".runs"))
                self._note(batch)
                end = min(len(batch), begin + self.settings.segment_documents - runs.rows, begin + MAX_EMPTY // 2)
                runs.add(batch.between(begin, end))
                begin = end
                if runs.rows == self.settings.segment_documents or runs.rows - runs.postings >= MAX_EMPTY // 2:
                    entries.append(self._finish(work, runs, codebook))
                    runs = None
        if runs is not None:
            entries.append(self._finish(work, runs, codebook))
        for number, entry in enumerate(entries):
            ids = Segment(work.folder, entry, self.settings.ids).ids.all() if number else None
            for earlier in entries[:number]:
                others = Segment(work.folder, earlier, self.settings.ids).ids.all()
                _refuse_twice(ids, id_column.locate(ids, others) >= 0)
        return entries

    def _note(self, batch: SparseRows) -> None:
        """Remember what rows say; refuse what does not belong to those before."""
        kind = kind_of(batch.ids)
        if self.settings.ids and kind != self.settings.ids:
            raise IndexingError(f"{batch.source}: ids are {kind}, those before were {self.settings.ids}")
        self.settings = replace(self.settings, ids=kind)
        if batch.origin is None:
            return
        model, source = batch.origin.model, batch.origin.source
        if self.adopt and self.model is None:
            self.model = model
        if model and self.model and model.fingerprint != self.model.fingerprint and not self.force:
            raise IndexingError(
                f"{batch.source}: its vectors were made by {model}, those of the index by {self.model}; scores across "
                "models mean nothing, --force (force=True) takes them all the same"
            )
        if source is not None:
            if source not in self.sources:
                self.sources += (source,)
            self._of_segment.add(self.sources.index(source))

    def _finish(self, work: Transaction, runs: RunWriter, kept: impacts.Codebook | None) -> SegmentEntry:
        ids, documents = id_column.ascending(runs.ids)
        _refuse_twice(ids, id_column.repeated(ids))
        codebook = impacts.choose(runs.histogram, self.settings.impact_bits, self.settings.impact_scale, kept)
        file = write_segment(work.new_path(".seg"), ids, runs.finish(documents), codebook, runs.histogram)
        log.info("%s: %s documents, %s bytes", file.name, f"{len(ids):,}", f"{file.bytes:,}")
        runs.remove()
        sources, self._of_segment = tuple(sorted(self._of_segment)), set()
        return SegmentEntry(file, len(ids), sources=sources)


def _batches(batches: Iterable[SparseRows]) -> Iterator[SparseRows]:
    """The batches, one after another; a path, a tensor or rows without a list are none.

    Raises:
        IndexingError: they are no batches of rows.
    """
    if isinstance(batches, SparseRows):
        raise IndexingError("rows come in a list or from an iterator: [rows], not rows")
    if isinstance(batches, (str, bytes, Path)):
        raise IndexingError(f"{batches!r} are no rows; read_shards([{str(batches)!r}]) reads them from files")
    try:
        batches = iter(batches)
    except TypeError as error:
        raise IndexingError(f"rows come in a list of SparseRows, not as {type(batches).__name__}") from error
    for batch in batches:
        if not isinstance(batch, SparseRows):
            raise IndexingError(
                f"a batch is {type(batch).__name__}, not SparseRows; SparseRows.from_dense(vectors, ids) makes one"
            )
        yield batch


def _refuse_twice(ids: Ids, twice: np.ndarray) -> None:
    if twice.any():
        raise IndexingError(f"id {ids[int(twice.argmax())]} comes twice: every document needs an id of its own")


def _without(
    work: Transaction, settings: IndexSettings, entries: Sequence[SegmentEntry], ids: Ids,
    tell: Callable[[SegmentEntry, Ids], None] = lambda entry, ids: None,
) -> tuple[list[SegmentEntry], int]:  # fmt: skip
    """The segments less the documents with these ids, and how many documents these were.

    Args:
        tell: is called with a segment and those of its ids that it loses.
    """
    kept, count = [], 0
    for entry in entries:
        segment = Segment(work.folder, entry, settings.ids)
        alive = segment.alive()
        documents = id_column.locate(ids, segment.all_ids())
        rows = np.flatnonzero(documents >= 0)
        rows = rows[alive[documents[rows]]]
        if len(rows):
            tell(entry, take_ids(ids, rows))
        alive[documents[rows]] = False
        deleted = len(alive) - int(alive.sum())
        count += deleted - entry.deleted
        if deleted == entry.documents:
            continue
        if deleted > entry.deleted:
            entry = replace(entry, deletions=write_deletions(work.new_path(".del"), alive), deleted=deleted)
        kept.append(entry)
    return kept, count


def _tell_other_root(sources: Sequence[Source], new: SegmentEntry, old: SegmentEntry, ids: Ids) -> None:
    """Say that documents of another folder or file are replaced, because they have the same ids."""
    before, now = ({sources[number].root for number in entry.sources} for entry in (old, new))
    if before and now and before != now:
        log.warning(
            "%s documents from %s are replaced by ones of the same ids from %s, e.g. %s; --id-prefix keeps them apart",
            f"{len(ids):,}", " or ".join(sorted(before)), " or ".join(sorted(now)), ids[0],
        )  # fmt: skip


def _documents(entries: Sequence[SegmentEntry]) -> int:
    return sum(entry.documents - entry.deleted for entry in entries)


def _publish(work: Transaction, state: Manifest | _Rows, entries: list[SegmentEntry], **counts: int) -> Change:
    manifest = work.publish(state.settings, entries, state.model, state.sources)
    return Change(manifest.generation, _documents(entries), segments=len(entries), **counts)
