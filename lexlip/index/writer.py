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
from lexlip.index.id_column import Ids
from lexlip.index.segment import MAX_DOCUMENTS, Segment, write_deletions, write_segment
from lexlip.index.store import SegmentEntry, Settings, Transaction, transaction
from lexlip.index.vectors import SparseRows

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
        segment_documents: a segment holds at most so many; memory while building grows with it.
        overwrite: take the place of an index that is in the folder; its readers keep the old state until they open
            the index again.

    Raises:
        IndexingError: rows that cannot be stored, an id or a document's term twice, or a folder that holds something.
    """
    impacts.check(impact_bits, impact_scale)
    if not 1 <= segment_documents <= MAX_DOCUMENTS:
        raise IndexingError(f"segment_documents={segment_documents}: it must be 1 to {MAX_DOCUMENTS:,}")
    with transaction(Path(folder), create=True) as work:
        if work.manifest and not overwrite:
            raise IndexingError(f"{folder} already holds an index: add to it, overwrite it, or name another folder")
        settings = Settings("", impact_bits, impact_scale, segment_documents)
        settings, entries = _write_rows(work, batches, settings, codebook=None)
        return _publish(work, settings, entries, added=_documents(entries))


def add(folder: str | Path, batches: Iterable[SparseRows]) -> Change:
    """Add documents in segments of their own. One whose id is there already takes the place of the old one.

    Raises:
        IndexingError: no index, rows that cannot be stored, ids of another kind, an id or a document's term twice.
        DamagedIndex: the ids of a segment are damaged.
    """
    with transaction(Path(folder)) as work:
        settings, old = work.manifest.settings, list(work.manifest.segments)
        kept = _largest_codebook(work)
        settings, new = _write_rows(work, batches, settings, kept)
        if not new:
            return _publish(work, settings, old)
        # Ids in ascending order of each new segment, looked up in each old one.
        replaced = 0
        for entry in new:
            added_ids = _open(work, entry).all_ids()
            for number, target in enumerate(old):
                segment = _open(work, target)
                places = id_column.locate(added_ids, segment.all_ids())
                old[number], count = _delete_in(work, target, segment, places[places >= 0])
                replaced += count
        old = [entry for entry in old if entry.deleted < entry.documents]
        return _publish(work, settings, old + new, added=_documents(new), replaced=replaced)


def delete(folder: str | Path, ids: Sequence[int] | Sequence[str] | Ids) -> Change:
    """Delete documents by their ids; ids that the index has not are passed over.

    Raises:
        IndexingError: no index, or ids of another kind than the index has.
        DamagedIndex: the ids of a segment are damaged.
    """
    with transaction(Path(folder)) as work:
        settings, entries = work.manifest.settings, list(work.manifest.segments)
        ids = id_column.normalise(ids)
        if len(ids) and settings.ids and id_column.kind_of(ids) != settings.ids:
            raise IndexingError(f"the ids of this index are {settings.ids}, not {id_column.kind_of(ids)}")
        deleted = 0
        for number, entry in enumerate(entries):
            segment = _open(work, entry)
            places = id_column.locate(ids, segment.all_ids()) if len(ids) else np.empty(0, np.int64)
            entries[number], count = _delete_in(work, entry, segment, places[places >= 0])
            deleted += count
        entries = [entry for entry in entries if entry.deleted < entry.documents]
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
        settings, old = work.manifest.settings, list(work.manifest.segments)
        entries = []
        for share in _shares(old, settings.segment_documents):
            if len(share) == 1 and not share[0].deleted:
                entries.append(share[0])
            else:
                entries.append(_merge(work, settings, share))
        return _publish(work, settings, entries)


def _shares(entries: list[SegmentEntry], limit: int) -> list[list[SegmentEntry]]:
    """Segments that go together, oldest first, at most `limit` live documents each."""
    shares: list[list[SegmentEntry]] = []
    for entry in entries:
        if shares and _documents([*shares[-1], entry]) <= limit:
            shares[-1].append(entry)
        else:
            shares.append([entry])
    return shares


def _merge(work: Transaction, settings: Settings, share: list[SegmentEntry]) -> SegmentEntry:
    from lexlip.index.decoded import DecodedSegment

    segments = [_open(work, entry) for entry in share]
    for segment, entry in zip(segments, share):
        damage = segment.file.damage(entry.file.crc32)
        if damage:
            raise DamagedIndex(damage[0])
    alive = [segment.alive() for segment in segments]
    ids = [id_column.take(segment.ids.all(), np.flatnonzero(mask)) for segment, mask in zip(segments, alive)]
    together = id_column.concatenate(ids)
    order = id_column.order(together)
    documents = np.empty(len(order), np.int64)
    documents[order] = np.arange(len(order))
    histogram = sum(segment.histogram() for segment in segments)
    sources, begin = [], 0
    for segment, mask in zip(segments, alive):
        numbers = np.full(segment.documents, -1)
        numbers[mask] = documents[begin : begin + mask.sum()]
        begin += mask.sum()
        sources.append(DecodedSegment(segment, numbers))
    largest = max(segments, key=lambda segment: segment.postings)
    codebook = impacts.choose(histogram, settings.impact_bits, settings.impact_scale, largest.codebook())
    file = write_segment(work.new_path(".seg"), id_column.take(together, order), sources, codebook, histogram)
    return SegmentEntry(file, len(order))


def _write_rows(
    work: Transaction, batches: Iterable[SparseRows], settings: Settings, codebook: impacts.Codebook | None
) -> tuple[Settings, list[SegmentEntry]]:
    """Segments of all rows, and the settings with the kind of their ids."""
    from lexlip.index.runs import RunWriter

    entries: list[SegmentEntry] = []
    held: list[Ids] = []
    runs: RunWriter | None = None
    for batch in batches:
        if not len(batch):
            continue
        kind = id_column.kind_of(batch.ids)
        if settings.ids and kind != settings.ids:
            raise IndexingError(f"{batch.source}: ids are {kind}, those before were {settings.ids}")
        settings = replace(settings, ids=kind)
        for part in _cut(batch, runs.rows if runs else 0, settings.segment_documents):
            if runs is None:
                folder = work.new_path(".runs")
                folder.mkdir()
                runs = RunWriter(folder)
            runs.add(part)
            held.append(part.ids)
            if runs.rows == settings.segment_documents:
                entries.append(_finish(work, settings, runs, held, codebook))
                runs, held = None, []
    if runs is not None:
        entries.append(_finish(work, settings, runs, held, codebook))
    _refuse_repeated(work, entries)
    return settings, entries


def _cut(batch: SparseRows, rows: int, limit: int) -> Iterable[SparseRows]:
    """A batch in parts, so that after `rows` rows each segment gets exactly `limit`."""
    begin = 0
    while begin < len(batch):
        end = min(len(batch), begin + limit - rows % limit)
        first, last = batch.offsets[begin], batch.offsets[end]
        yield SparseRows(
            batch.ids[begin:end], batch.offsets[begin : end + 1] - first,
            batch.terms[first:last], batch.weights[first:last], batch.source,
        )  # fmt: skip
        rows += end - begin
        begin = end


def _finish(
    work: Transaction, settings: Settings, runs: RunWriter, held: list[Ids], kept: impacts.Codebook | None
) -> SegmentEntry:
    from lexlip.index.runs import TwiceError

    ids = id_column.concatenate(held)
    order = id_column.order(ids)
    ids = id_column.take(ids, order)
    repeated = id_column.repeated(ids)
    if len(repeated):
        raise IndexingError(f"id {ids[int(repeated[0])]} comes twice: every document needs an id of its own")
    documents = np.empty(len(order), np.int64)
    documents[order] = np.arange(len(order))
    codebook = impacts.choose(runs.histogram, settings.impact_bits, settings.impact_scale, kept)
    try:
        file = write_segment(work.new_path(".seg"), ids, runs.finish(documents), codebook, runs.histogram)
    except TwiceError as error:
        raise IndexingError(f"id {ids[error.document]} holds term {error.term} twice: add its weights up") from error
    log.info("%s: %s documents, %s bytes", file.name, f"{len(ids):,}", f"{file.bytes:,}")
    runs.remove()
    return SegmentEntry(file, len(ids))


def _refuse_repeated(work: Transaction, entries: list[SegmentEntry]) -> None:
    """An id may be in one of several new segments only; within one it was looked for before."""
    for number, entry in enumerate(entries):
        ids = _open(work, entry).ids.all()
        for earlier in entries[:number]:
            others = _open(work, earlier).ids
            found = np.flatnonzero(id_column.locate(ids, others.all()) >= 0)
            if len(found):
                raise IndexingError(f"id {ids[int(found[0])]} comes twice: every document needs an id of its own")


def _largest_codebook(work: Transaction) -> impacts.Codebook | None:
    segments = [_open(work, entry) for entry in work.manifest.segments]
    return max(segments, key=lambda segment: segment.postings).codebook() if segments else None


def _open(work: Transaction, entry: SegmentEntry) -> Segment:
    return open_segment(work.folder, entry)


def open_segment(folder: Path, entry: SegmentEntry) -> Segment:
    """The segment of a manifest's entry."""
    deletions = entry.deletions
    return Segment(
        folder / entry.file.name, entry.file.bytes,
        folder / deletions.name if deletions else None, deletions.bytes if deletions else None,
    )  # fmt: skip


def _delete_in(
    work: Transaction, entry: SegmentEntry, segment: Segment, documents: np.ndarray
) -> tuple[SegmentEntry, int]:
    """The entry with these documents deleted too, and how many of them were alive."""
    alive = segment.alive()
    count = int(alive[np.unique(documents)].sum())
    if not count:
        return entry, 0
    alive[documents] = False
    deletions = write_deletions(work.new_path(".del"), alive)
    return replace(entry, deletions=deletions, deleted=int((~alive).sum())), count


def _documents(entries: list[SegmentEntry]) -> int:
    return sum(entry.documents - entry.deleted for entry in entries)


def _publish(work: Transaction, settings: Settings, entries: list[SegmentEntry], **counts: int) -> Change:
    manifest = work.publish(settings, entries)
    return Change(manifest.generation, _documents(entries), segments=len(entries), **counts)
