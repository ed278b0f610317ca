"""Building an index and changing it: build, add, delete, merge.

Each of them is one transaction: it appears whole or not at all. Memory is that of one segment's ids and of some million
postings, however many documents there are; postings go through runs on the disk (`lexlip.index.runs`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import id_column, impacts
from lexlip.index.segment import MAX_DOCUMENTS, Segment, SegmentEntry, write_deletions, write_segment
from lexlip.index.store import IndexSettings, Transaction, transaction
from lexlip.sparse import Ids, SparseRows, as_ids, kind_of, take_ids

if TYPE_CHECKING:
    from lexlip.index.runs import RunWriter

log = logging.getLogger(__name__)

IMPACT_BITS, IMPACT_SCALE, SEGMENT_DOCUMENTS = 9, "fitted", 1 << 22


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
    folder: str | Path,
    batches: Iterable[SparseRows],
    *,
    impact_bits: int = IMPACT_BITS,
    impact_scale: str = IMPACT_SCALE,
    segment_documents: int = SEGMENT_DOCUMENTS,
    overwrite: bool = False,
) -> Change:
    """Build an index from all rows.

    Args:
        folder: a new or an empty one.
        batches: rows, read once.
        impact_bits: of a stored weight, 1 to 12.
        impact_scale: "fitted" or "linear"; see `lexlip.index.impacts`.
        segment_documents: documents of a segment at most; memory while building grows with it.
        overwrite: replace an index that is in the folder; its readers keep the old state until they open the index
            again.

    Raises:
        IndexingError: rows that cannot be stored, an id or a document's term twice, or a folder that holds something.
    """
    impacts.check(impact_bits, impact_scale)
    if not 1 <= segment_documents <= MAX_DOCUMENTS:
        raise IndexingError(f"segment_documents={segment_documents}: it must be 1 to {MAX_DOCUMENTS:,}")
    with transaction(Path(folder), create=True) as work:
        if work.has_index() and not overwrite:
            raise IndexingError(f"{folder} already holds an index: add to it, overwrite it, or name another folder")
        settings = IndexSettings("", impact_bits, impact_scale, segment_documents)
        settings, entries = _write_rows(work, batches, settings, codebook=None)
        return _publish(work, settings, entries, added=_documents(entries))


def add(folder: str | Path, batches: Iterable[SparseRows]) -> Change:
    """Add documents in segments of their own. One whose id the index holds already replaces the old one.

    Raises:
        IndexingError: no index, rows that cannot be stored, ids of another kind, an id or a document's term twice.
        DamagedIndex: the ids of a segment are damaged.
    """
    with transaction(Path(folder)) as work:
        manifest = work.manifest
        segments = [Segment(work.folder, entry) for entry in manifest.segments]
        largest = max(segments, key=lambda segment: segment.postings, default=None)
        settings, new = _write_rows(work, batches, manifest.settings, largest.codebook() if largest else None)
        old, replaced = list(manifest.segments), 0
        for entry in new:
            old, count = _without(work, old, Segment(work.folder, entry).all_ids())
            replaced += count
        return _publish(work, settings, old + new, added=_documents(new), replaced=replaced)


def delete(folder: str | Path, ids: Sequence[int] | Sequence[str] | Ids) -> Change:
    """Delete documents by their ids; ids that the index does not hold are ignored.

    Raises:
        IndexingError: no index, or ids of another kind than the index has.
        DamagedIndex: the ids of a segment are damaged.
    """
    with transaction(Path(folder)) as work:
        settings, ids = work.manifest.settings, as_ids(ids)
        if len(ids) and settings.ids and kind_of(ids) != settings.ids:
            raise IndexingError(f"the ids of this index are {settings.ids}, not {kind_of(ids)}")
        entries, deleted = _without(work, work.manifest.segments, ids)
        return _publish(work, settings, entries, deleted=deleted)


def merge(folder: str | Path) -> Change:
    """Merge all segments into as few as `segment_documents` allows, and drop what is deleted.

    Weights stay as they are stored where segments share a codebook. Where they do not, they are rounded once more: to
    the codebook of the largest, whose own weights then stay, or to a new one if that serves the others badly.

    Raises:
        IndexingError: no index.
        DamagedIndex: a segment that is not what was written.
    """
    with transaction(Path(folder)) as work:
        settings = work.manifest.settings
        groups: list[list[SegmentEntry]] = []  # segments that become one, oldest first
        for entry in work.manifest.segments:
            if groups and _documents([*groups[-1], entry]) <= settings.segment_documents:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        entries = [
            group[0] if len(group) == 1 and not group[0].deleted else _merge(work, settings, group) for group in groups
        ]
        return _publish(work, settings, entries)


def _merge(work: Transaction, settings: IndexSettings, group: list[SegmentEntry]) -> SegmentEntry:
    from lexlip.index.runs import DecodedSegment

    segments = [Segment(work.folder, entry) for entry in group]
    for segment in segments:
        damage = segment.damage()
        if damage:
            raise DamagedIndex(damage[0])
    alive = [np.flatnonzero(segment.alive()) for segment in segments]
    ids, documents = id_column.ascending([take_ids(segment.ids.all(), rows) for segment, rows in zip(segments, alive)])
    sources = []
    for segment, rows, numbers in zip(segments, alive, np.split(documents, np.cumsum([len(rows) for rows in alive]))):
        becomes = np.full(segment.documents, -1)
        becomes[rows] = numbers
        sources.append(DecodedSegment(segment, becomes))
    histogram = np.sum([segment.histogram() for segment in segments], axis=0)
    largest = max(segments, key=lambda segment: segment.postings)
    codebook = impacts.choose(histogram, settings.impact_bits, settings.impact_scale, largest.codebook())
    return SegmentEntry(write_segment(work.new_path(".seg"), ids, sources, codebook, histogram), len(ids))


def _write_rows(
    work: Transaction, batches: Iterable[SparseRows], settings: IndexSettings, codebook: impacts.Codebook | None
) -> tuple[IndexSettings, list[SegmentEntry]]:
    """Segments of all rows, and the settings with the kind of their ids."""
    from lexlip.index.runs import RunWriter

    entries: list[SegmentEntry] = []
    runs: RunWriter | None = None
    for batch in batches:
        if not len(batch):
            continue
        kind = kind_of(batch.ids)
        if settings.ids and kind != settings.ids:
            raise IndexingError(f"{batch.source}: ids are {kind}, those before were {settings.ids}")
        settings = replace(settings, ids=kind)
        begin = 0
        while begin < len(batch):
            runs = runs or RunWriter(work.new_path(".runs"))
            end = min(len(batch), begin + settings.segment_documents - runs.rows)
            runs.add(batch.between(begin, end))
            begin = end
            if runs.rows == settings.segment_documents:
                entries.append(_finish(work, settings, runs, codebook))
                runs = None
    if runs is not None:
        entries.append(_finish(work, settings, runs, codebook))
    for number, entry in enumerate(entries):
        ids = Segment(work.folder, entry).ids.all()
        for earlier in entries[:number]:
            _refuse_twice(ids, id_column.locate(ids, Segment(work.folder, earlier).ids.all()) >= 0)
    return settings, entries


def _finish(work: Transaction, settings: IndexSettings, runs: RunWriter, kept: impacts.Codebook | None) -> SegmentEntry:
    ids, documents = id_column.ascending(runs.ids)
    _refuse_twice(ids, id_column.repeated(ids))
    codebook = impacts.choose(runs.histogram, settings.impact_bits, settings.impact_scale, kept)
    file = write_segment(work.new_path(".seg"), ids, runs.finish(documents), codebook, runs.histogram)
    log.info("%s: %s documents, %s bytes", file.name, f"{len(ids):,}", f"{file.bytes:,}")
    runs.remove()
    return SegmentEntry(file, len(ids))


def _refuse_twice(ids: Ids, twice: np.ndarray) -> None:
    if twice.any():
        raise IndexingError(f"id {ids[int(twice.argmax())]} comes twice: every document needs an id of its own")


def _without(work: Transaction, entries: Sequence[SegmentEntry], ids: Ids) -> tuple[list[SegmentEntry], int]:
    """The segments less the documents with these ids, and how many documents these were."""
    kept, count = [], 0
    for entry in entries:
        segment = Segment(work.folder, entry)
        alive = segment.alive()
        documents = id_column.locate(ids, segment.all_ids())
        alive[documents[documents >= 0]] = False
        deleted = len(alive) - int(alive.sum())
        count += deleted - entry.deleted
        if deleted == entry.documents:
            continue
        if deleted > entry.deleted:
            entry = replace(entry, deletions=write_deletions(work.new_path(".del"), alive), deleted=deleted)
        kept.append(entry)
    return kept, count


def _documents(entries: Sequence[SegmentEntry]) -> int:
    return sum(entry.documents - entry.deleted for entry in entries)


def _publish(work: Transaction, settings: IndexSettings, entries: list[SegmentEntry], **counts: int) -> Change:
    manifest = work.publish(settings, entries)
    return Change(manifest.generation, _documents(entries), segments=len(entries), **counts)
