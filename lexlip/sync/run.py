"""One sync: look at a folder, encode what is new, publish it batch by batch, delete what is gone.

Nothing is encoded whose content the index knows: a file that was renamed, copied or only touched keeps its vector.
Costs a `stat` per file where nothing changed; no model is loaded then. Every batch is one publication, so a sync that
is interrupted keeps what it had; the journal (`state.py`) makes up for whatever lies between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from lexlip.errors import IndexBusy, IndexingError, UserError
from lexlip.index import writer
from lexlip.index.index import Index
from lexlip.index.origin import ModelStamp, Origin, Source
from lexlip.index.shards import with_prefix
from lexlip.index.store import MANIFEST, SYNC_FILES, read_manifest
from lexlip.sparse import SparseRows, as_ids, take_ids
from lexlip.sync.media import MediaFiles
from lexlip.sync.state import Entry, RootState, SyncState
from lexlip_data.errors import MissingImage, one_line
from lexlip_data.sources.kinds import READ
from lexlip_data.sources.skipped import Skipped

BATCH = 256  # files of a publication: what an interrupted sync loses
EVERY = 10.0  # seconds between two moments of a video
FEW_SEGMENTS = 8  # more than these are merged at the end: each costs a search its time
QUICKLY_MERGED = 200_000  # documents; larger indexes are left to `add` and `lexlip index merge`
MANY = 20  # photos that do not all vanish by accident


class Encoder(NamedTuple):
    """What makes vectors.

    Attributes:
        stamp: of its model.
        windows: of `lexlip.encode.vectors.CorpusEncoder`.
    """

    stamp: ModelStamp
    windows: Callable[[Any, Iterable[tuple[int, int]]], Iterator[tuple[SparseRows, list[Skipped]]]]


@dataclass
class Synced:
    """What a sync did.

    Attributes:
        added, changed, renamed, deleted, unchanged: files with documents; one that was copied counts as renamed.
        encoded: documents that went through the model.
        seconds: that took.
        documents: of the index now.
        broken: files that cannot be used, and why.
        notes: of the folder: what is no photo, a line for each kind of it.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    encoded: int = 0
    seconds: float = 0.0
    documents: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """Files that were not as they were."""
        return self.added + self.changed + self.renamed + self.deleted


@dataclass(frozen=True)
class Settings:
    """Of a folder, remembered with it; None: as it was begun, or the default.

    Attributes:
        id_prefix: before each id; the default is "" for the first folder and its name and "/" for others.
        top_k: how many of the heaviest terms of a vector are kept; 0: all.
        video_seconds: between two moments of a video; 0: videos are left out.
        video_whole: a video is one document, the maximum over its moments.
    """

    id_prefix: str | None = None
    top_k: int | None = None
    video_seconds: float | None = None
    video_whole: bool | None = None


def sync(
    folder: str | Path, index: str | Path, encoder: Callable[[int], Encoder], settings: Settings | None = None, *,
    batch: int = BATCH, rebuild: bool = False, may_be_empty: bool = False,
    progress: Callable[[int, int], object] = lambda done, all: None,
) -> Synced:  # fmt: skip
    """Make an index follow a folder.

    Args:
        folder: of photos; it is looked at with all folders in it.
        index: a new folder, or an index.
        encoder: called once with top_k, where something has to be encoded.
        settings: those that are not None must be as the folder was begun.
        batch: files of a publication.
        rebuild: replace the index, whatever made it.
        may_be_empty: go on where every photo of a folder of many is gone.
        progress: called with files that are done, and files to do.

    Raises:
        IndexBusy: another sync is at work.
        IndexingError: an index of another model, settings that differ, ids that another folder has.
        UserError: no photos at all, or none of many that were there.
        DataError: no such folder.
    """
    begin = time.monotonic()
    with _alone(Path(index)):
        work = _Sync(Path(folder), Path(index), encoder, settings or Settings(), batch, rebuild, progress)
        done = work.run(may_be_empty)
    done.seconds = round(time.monotonic() - begin, 3)
    return done


@contextmanager
def _alone(index: Path) -> Iterator[None]:
    """One sync at a time; a folder that was made for nothing is removed."""
    new = not index.exists()
    index.mkdir(parents=True, exist_ok=True)
    lock = FileLock(index / SYNC_FILES[-1])
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise IndexBusy(f"{index}: another sync is at work; wait for it, or end it") from error
    try:
        yield
    finally:
        if not (index / MANIFEST).exists() and {path.name for path in index.iterdir()} <= {SYNC_FILES[-1]}:
            (index / SYNC_FILES[-1]).unlink(missing_ok=True)
            if new:
                index.rmdir()
        lock.release()


class _Sync:
    def __init__(
        self, folder: Path, index: Path, encoder: Callable[[int], Encoder], settings: Settings, batch: int,
        rebuild: bool, progress: Callable[[int, int], object],
    ):  # fmt: skip
        self.folder, self.index = folder, index
        self._make_encoder = encoder
        self.batch, self.rebuild, self.progress = batch, rebuild, progress
        self.state = SyncState(index)
        self.root = _root(folder, [*self.state.roots, *(source.root for source in _sources(index))])
        if rebuild:
            self._refuse_loss()
            self.state.begin_anew()
        known = self.state.roots.get(self.root)
        self.settings = self._settled(settings, known)
        self.media = MediaFiles(folder, self.settings["video_seconds"] or 0.0)
        self.done = Synced(notes=list(self.media.notes))
        self.new_index = rebuild or not (index / MANIFEST).exists()
        self.is_new_root = known is None or self.new_index
        self.alive: set[str] = set() if self.new_index else _alive(index)
        self.known: dict[str, Entry] = {}  # files whose entries hold
        self.foreign: set[str] = set()  # ids that are not this folder's

    def run(self, may_be_empty: bool) -> Synced:
        names = self.media.names.to_pylist()
        if not names and (self.new_index or self.is_new_root):
            told = "".join(f"\n{note}" for note in self.done.notes)
            raise UserError(f"{self.folder}: no photos in it{told}")
        files = self._known()
        if not names and len(files) > MANY and not may_be_empty:
            raise UserError(
                f"{self.folder}: none of its {len(files):,} photos is there any more; is its disk missing? --empty "
                "deletes them from the index"
            )
        if self.is_new_root:
            self._refuse_mixture()
            self._begin()
        root = self.state.roots[self.root]
        if root.settings != self.settings:  # other kinds of files are read now
            self.state.configure(self.root, self.settings)
        if self._others():
            self.foreign = self.alive - root.pending - self._ids(root.files)
        listed = set(names)
        gone = [name for name in root.files if name not in listed and self.media.is_gone(name)]
        todo = [name for name in names if not self._is_as_it_was(name, files)]
        self.done.unchanged = len(names) - len(todo) - len(self.done.broken)
        self.known = files
        self.digests = {entry.digest: name for name, entry in files.items() if entry.names(name)}
        self.gone = set(gone)
        for first in range(0, len(todo), self.batch):
            self._take(todo[first : first + self.batch])
            self.progress(min(first + self.batch, len(todo)), len(todo))
        self._delete(gone)
        self._finish()
        return self.done

    # --- what there is ---

    def _settled(self, given: Settings, known: RootState | None) -> dict[str, Any]:
        usual = {"id_prefix": None, "top_k": 0, "video_seconds": None, "video_whole": False}
        begun = known.settings if known else {}
        settled = {**usual, **begun, "readers": _readers()}
        for name, value in vars(given).items():
            if value is not None and begun.get(name) is not None and begun[name] != value:
                raise IndexingError(
                    f"{self.folder} is in {self.index} with {name}={begun[name]!r}, not {value!r}; leave it out, or "
                    f"begin anew: lexlip sync {self.folder} --index {self.index} --rebuild"
                )
            settled[name] = settled[name] if value is None else value
        if settled["video_seconds"] is None and "video" in settled["readers"]:  # also where PyAV came later
            settled["video_seconds"] = EVERY
        if settled["id_prefix"] is None:
            settled["id_prefix"] = f"{Path(self.root).name}/" if self._others() else ""
        return settled

    def _others(self) -> list[Source]:
        """What else was encoded into the index."""
        return [] if self.rebuild else [source for source in _sources(self.index) if source.root != self.root]

    def _refuse_loss(self) -> None:
        """An index that is built anew holds this folder alone."""
        roots = {*self.state.roots, *(source.root for source in _sources(self.index))}
        if others := sorted(root for root in roots if not _is_same(root, self.root)):
            more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
            raise IndexingError(
                f"{self.index} holds {one_line(others[0])}{more} too, which --rebuild would lose; sync into a new "
                "--index, or remove this one and sync each folder again"
            )

    def _refuse_mixture(self) -> None:
        """Two folders with one prefix would take each other's ids for their own."""
        prefix = self.settings["id_prefix"]
        for source in self._others():
            if source.id_prefix == prefix:
                raise IndexingError(
                    f"{self.index} holds {source.root} with the same id prefix {prefix!r}; give --id-prefix another"
                )

    def _begin(self) -> None:
        """Remember a folder that the journal does not have; all that was encoded of it otherwise is encoded anew."""
        self.state.configure(self.root, self.settings)
        if not self.new_index:
            mine = {number for number, source in enumerate(_sources(self.index)) if source.root == self.root}
            self.state.announce(self.root, _alive(self.index, mine))

    def _ids(self, files: Mapping[str, Entry]) -> set[str]:
        """Ids of the documents of some files."""
        return {self._id(document) for name, entry in files.items() for document in self._names(name, entry)}

    def _known(self) -> dict[str, Entry]:
        """Files whose documents are all in the index, or that have none."""
        root = self.state.roots.get(self.root) or RootState()
        sure = self.alive - root.pending
        readers_changed = root.settings.get("readers") != self.settings["readers"]
        return {
            name: entry for name, entry in root.files.items()
            if self._ids({name: entry}) <= sure and not (entry.why and readers_changed)
        }  # fmt: skip

    def _is_as_it_was(self, name: str, files: dict[str, Entry]) -> bool:
        entry = files.get(name)
        if entry is None or not entry.mtime or (entry.size, entry.mtime) != self.media.look(name):
            return False
        if entry.why:
            self.done.broken[name] = entry.why
        return True

    def _id(self, name: str) -> str:
        return self.settings["id_prefix"] + name

    def _names(self, name: str, entry: Entry) -> list[str]:
        """Names of a file's documents."""
        whole = self.settings["video_whole"] and entry.moments and not entry.why
        return [name] if whole else entry.names(name)

    # --- a batch ---

    def _take(self, names: list[str]) -> None:
        """Look into some files, encode those of new content, and publish all of them."""
        files = self.state.roots[self.root].files
        entries: dict[str, Entry | None] = {}
        sources: dict[str, str] = {}  # file -> a file of the same content whose documents the index has
        for name in names:
            try:
                entries[name] = entry = self.media.read(name)
            except MissingImage:  # a moment later it is gone
                continue
            before = self.known.get(name)
            if before is not None and before.why and before.digest == entry.digest:  # broken, and as it was
                entries[name] = entry = entry._replace(why=before.why)
            source = self.digests.get(entry.digest)
            same = files.get(source) if source is not None else None
            if source is not None and same is not None and not entry.why and same.digest == entry.digest:
                sources[name] = source
        fresh = {name: entry for name, entry in entries.items() if entry and not entry.why and name not in sources}
        rows = [*self._reused(sources, files), *self._encoded(fresh, entries)]
        self._publish(names, entries, rows, sources, files)

    def _reused(self, sources: dict[str, str], files: dict[str, Entry]) -> list[SparseRows]:
        """Rows of documents that the index has under other ids, or under the same."""
        becomes: dict[str, list[str]] = {}
        for name, source in sources.items():
            if name != source or self._id(name) not in self.alive:
                entry = files[source]
                for old, new in zip(self._names(source, entry), self._names(name, entry)):
                    becomes.setdefault(self._id(old), []).append(self._id(new))
        if not becomes:
            return []
        from lexlip.index.stored import stored_rows

        parts = []
        for rows in stored_rows(Index.open(self.index), only=becomes.keys()):
            pairs = [(number, new) for number, old in enumerate(rows.ids.tolist()) for new in becomes[old]]
            numbers, new_ids = zip(*pairs)
            parts.append(replace(rows.take(np.array(numbers)), ids=as_ids(list(new_ids)), origin=self._origin()))
        return parts

    def _encoded(self, fresh: dict[str, Entry], entries: dict[str, Entry | None]) -> list[SparseRows]:
        """Rows of documents that go through the model; files that cannot be used are noted in `entries`."""
        documents = [document for name, entry in fresh.items() for document in entry.names(name)]
        if not documents:
            return []
        corpus = self.media.documents(documents, {name: entry.digest for name, entry in fresh.items()})
        found, skipped = [], []
        for rows, left_out in self.encoder.windows(corpus, [(0, len(documents))]):
            found.append(rows)
            skipped += left_out
        file_of = {document: name for name, entry in fresh.items() for document in entry.names(name)}
        for item in skipped:
            name = file_of[item.image_id]
            entries[name] = None if item.kind in ("moved", "missing") else fresh[name]._replace(why=item.reason)
        self.done.encoded += len(documents)
        parts = [self._of_usable(rows, file_of, entries) for rows in found]
        prefixed = (with_prefix(rows, self.settings["id_prefix"]) for rows in parts if len(rows))
        return [replace(rows, origin=self._origin()) for rows in prefixed]

    def _of_usable(self, rows: SparseRows, file_of: dict[str, str], entries: dict[str, Entry | None]) -> SparseRows:
        """Rows of files that can be used whole; of a video that is one document, the maximum over its moments."""
        usable = {name for name, entry in entries.items() if entry and not entry.why}
        rows = rows.take(np.flatnonzero([file_of[id] in usable for id in rows.ids.tolist()]))
        if not self.settings["video_whole"]:
            return rows
        bags: dict[str, dict[int, float]] = {}
        for id, terms, weights in rows.documents():
            bag = bags.setdefault(file_of[str(id)], {})
            for term, weight in zip(terms.tolist(), weights.tolist()):
                bag[term] = max(weight, bag.get(term, 0.0))
        return SparseRows.from_bags(bags.values(), list(bags))

    def _publish(
        self, names: list[str], entries: dict[str, Entry | None], rows: list[SparseRows], sources: dict[str, str],
        files: dict[str, Entry],
    ) -> None:  # fmt: skip
        old = {name: files.get(name) for name in names}
        fresh_ids = [id for part in rows for id in part.ids.tolist()]
        if taken := self.foreign.intersection(fresh_ids):
            raise IndexingError(
                f"{self.index}: {min(taken)!r} is a document of another folder; give this one another --id-prefix"
            )
        now, before = (self._ids({n: entry for n, entry in some.items() if entry}) for some in (entries, old))
        stale = sorted((before - now) & self.alive)
        if fresh_ids or stale or self.new_index:
            self.state.announce(self.root, fresh_ids)
            self._write([part for part in rows if len(part)], stale)
        self.alive = self.alive - set(stale) | set(fresh_ids)
        pending = self.state.roots[self.root].pending - set(fresh_ids)
        noted = {name: entries.get(name) for name in names if entries.get(name) or name in files}
        self.state.note(self.root, noted, pending)
        self._count(names, entries, sources, old)

    def _write(self, rows: list[SparseRows], stale: list[str]) -> None:
        if self.new_index:
            if self.rebuild:
                self.state.forget()
            writer.build(self.index, rows, overwrite=self.rebuild)
            if self.rebuild:
                self.state.keep()
            self.new_index = False
        elif rows:
            writer.add(self.index, rows, without=stale)
        else:
            writer.delete(self.index, stale)

    def _count(
        self, names: list[str], entries: dict[str, Entry | None], sources: dict[str, str], old: dict[str, Entry | None]
    ) -> None:
        for name in names:
            entry, before = entries.get(name), old[name]
            if entry is None:
                continue
            if entry.why:
                self.done.broken[name] = entry.why
            elif before is not None and before.digest == entry.digest and not before.why:
                self.done.unchanged += 1
            elif before is not None and not before.why:
                self.done.changed += 1
            else:
                source = sources.get(name)
                self.done.renamed += source is not None
                self.done.added += source is None
            if not entry.why:
                self.digests[entry.digest] = name

    # --- the end ---

    def _delete(self, gone: list[str]) -> None:
        """Documents of files that are gone, and those that a killed sync left."""
        root = self.state.roots[self.root]
        kept = self._ids({name: entry for name, entry in root.files.items() if name not in self.gone})
        ids = sorted(((root.pending | self._ids({name: root.files[name] for name in gone})) - kept) & self.alive)
        if ids:
            writer.delete(self.index, ids)
            self.alive -= set(ids)
        if gone or root.pending:
            self.state.note(self.root, dict.fromkeys(gone))
        self.done.deleted = len(gone)

    def _finish(self) -> None:
        self.done.documents = len(self.alive)
        if not self.new_index and len(self.alive) <= QUICKLY_MERGED:
            if len(read_manifest(self.index).segments) > FEW_SEGMENTS:
                writer.merge(self.index)
        self.state.tidy()

    @cached_property
    def encoder(self) -> Encoder:
        """Opened when it is needed first.

        Raises:
            IndexingError: its model did not make the index.
        """
        return self._make_encoder(self.settings["top_k"])

    def _origin(self) -> Origin:
        stamp = self.encoder.stamp if "encoder" in vars(self) else read_manifest(self.index).model
        return Origin(stamp, Source(self.root, "images", self.settings["id_prefix"]))


def _alive(index: Path, sources: set[int] | None = None) -> set[str]:
    """Ids of an index's documents; only of segments that hold nothing but some sources, if they are given.

    Raises:
        IndexingError: they are numbers.
    """
    opened = Index.open(index)
    if opened.manifest.settings.ids == "int":
        raise IndexingError(f"{index}: its ids are numbers, those of photos are their paths; name another index")
    found: set[str] = set()
    for entry, segment in zip(opened.manifest.segments, opened.segments):
        if sources is None or (entry.sources and sources.issuperset(entry.sources)):
            found.update(take_ids(segment.all_ids(), np.flatnonzero(segment.alive())).tolist())
    return found


def _root(folder: Path, known: Iterable[str]) -> str:
    """What a folder is called in an index: the name that is known, whichever path led there then."""
    path, names = os.path.abspath(folder), list(known)
    return path if path in names else next((name for name in names if _is_same(name, path)), path)


def _is_same(first: str, second: str) -> bool:
    return first == second or (os.path.isdir(first) and os.path.realpath(first) == os.path.realpath(second))


def _sources(index: Path) -> tuple[Source, ...]:
    """What was encoded into an index; nothing where there is none."""
    return tuple(read_manifest(index).sources) if (index / MANIFEST).exists() else ()


def _readers() -> list[str]:
    """Kinds of files that can be read here; with others than before, broken files are looked at again."""
    return sorted([*READ, *(["video"] if find_spec("av") else [])])
