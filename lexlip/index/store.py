"""The folder of an index: which files it is made of, who may write, and how a new state replaces the old one.

The manifest names the files of the current state. It is replaced by a rename, after all files that it names are on the
disk: a reader sees the old state or the new one, whenever the writer is killed. Files never change; those that no
manifest names any more are removed after the next state is published. Whoever has them open keeps them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lexlip.errors import DamagedIndex, IndexBusy, IndexingError
from lexlip.index.check import MAX_DOCUMENTS, MAX_JSON, Facts, require
from lexlip.index.container import FileEntry
from lexlip.index.impacts import MAX_BITS, MIN_BITS, SCALES
from lexlip.index.origin import ModelStamp, Source, source_of, stamp_of
from lexlip.index.segment import Segment, SegmentEntry
from lexlip_data.sources.files import sync_folder, writing

MANIFEST = "manifest"
LOCK = "write.lock"
SYNC_FILES = ("sync.journal", "sync.journal.tmp", "sync.lock")  # of `lexlip.sync`, which begins before there is a state
# Names as `Transaction.new_path` makes them: what a writer may leave behind, and only that is ever removed.
_WRITERS_OWN = re.compile(r"[0-9a-f]{12}\.(seg|del|runs|tmp)")
_FIRST_LINE = re.compile(rb"lexlip-index 1 crc32=([0-9a-f]{8})\n")


@dataclass(frozen=True)
class IndexSettings:
    """What an index is built with, for all its segments.

    Attributes:
        ids: "int" or "string".
        impact_bits: of a stored weight, 1 to 12.
        impact_scale: "fitted" or "linear"; see `lexlip.index.impacts`.
        segment_documents: documents of a segment at most.
    """

    ids: str
    impact_bits: int
    impact_scale: str
    segment_documents: int


@dataclass(frozen=True)
class Manifest:
    """A state of an index.

    Attributes:
        generation: counts the states, from 1.
        settings: for all segments.
        segments: oldest first. An id is alive in one of them at most.
        model: that made the vectors; None where that is not known.
        sources: what was encoded, as far as it is known.
    """

    generation: int
    settings: IndexSettings
    segments: tuple[SegmentEntry, ...] = field(default=())
    model: ModelStamp | None = None
    sources: tuple[Source, ...] = ()

    def files(self) -> list[FileEntry]:
        """All files it is made of."""
        return [file for entry in self.segments for file in (entry.file, entry.deletions) if file is not None]


def read_manifest(folder: Path) -> Manifest:
    """The current state.

    Raises:
        IndexingError: the folder holds no index.
        DamagedIndex: the manifest is not what was written.
    """
    path = folder / MANIFEST
    try:
        require(stat.S_ISREG(path.stat().st_mode), path, "no plain file")
        with open(path, "rb") as file:
            content = file.read(MAX_JSON)
    except (FileNotFoundError, NotADirectoryError) as error:
        why = "is a file, not a folder" if folder.is_file() else f"holds no index: there is no file {MANIFEST} in it"
        raise IndexingError(f"{folder} {why}") from error
    except OSError as error:
        raise IndexingError(f"{path} cannot be read: {error.strerror}") from error
    first_line = _FIRST_LINE.match(content)
    if not first_line or int(first_line[1], 16) != zlib.crc32(content[first_line.end() :]):
        raise DamagedIndex(f"{path} is damaged, or of another format")
    return manifest_of(Facts.parse(content[first_line.end() :], path))


def open_segments(folder: Path, manifest: Manifest) -> Iterator[Segment]:
    """The segments of a state, one after another.

    Raises:
        DamagedIndex: as `Segment`.
        FileNotFoundError: a file was removed since.
    """
    return (Segment(folder, entry, manifest.settings.ids) for entry in manifest.segments)


def manifest_of(facts: Facts) -> Manifest:
    """A manifest's JSON, every value checked."""
    stored = facts.part("settings")
    settings = IndexSettings(
        stored.text("ids", ("int", "string", "")), stored.whole("impact_bits", MIN_BITS, MAX_BITS),
        stored.text("impact_scale", SCALES), stored.whole("segment_documents", 1, MAX_DOCUMENTS),
    )  # fmt: skip
    sources = tuple(map(source_of, facts.parts("sources")))
    segments = tuple(_segment(entry, len(sources)) for entry in facts.parts("segments"))
    require(settings.ids or not segments, facts.place, "segments, but no kind of ids")
    manifest = Manifest(facts.whole("generation", 1), settings, segments, stamp_of(facts), sources)
    names = [file.name for file in manifest.files()]
    require(len(set(names)) == len(names), facts.place, "a file belongs to two segments")
    return manifest


def _segment(facts: Facts, sources: int) -> SegmentEntry:
    documents = facts.whole("documents", 0, MAX_DOCUMENTS)
    deleted = facts.whole("deleted", 0, documents)
    deletions = _file(facts.part("deletions"), ".del") if facts.values.get("deletions") is not None else None
    require((deleted > 0) == (deletions is not None), facts.place, f"{deleted:,} documents are deleted, but not which")
    numbers = facts.values.get("sources", [])
    good = isinstance(numbers, list) and all(type(number) is int and 0 <= number < sources for number in numbers)
    require(good, facts.place, "a segment names a source that is not there")
    return SegmentEntry(_file(facts.part("file"), ".seg"), documents, deleted, deletions, tuple(numbers))


def _file(facts: Facts, suffix: str) -> FileEntry:
    name = facts.text("name")
    own = _WRITERS_OWN.fullmatch(name) is not None and name.endswith(suffix)
    require(own, facts.place, f"{name[:40]!r} is no name of a file of an index")
    return FileEntry(name, facts.whole("bytes"), facts.whole("crc32", 0, (1 << 32) - 1))


class Transaction:
    """A writer's work on an index: new files, then one new state.

    Attributes:
        folder: of the index.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def has_index(self) -> bool:
        """Whether there is a state yet."""
        return (self.folder / MANIFEST).exists()

    @property
    def manifest(self) -> Manifest:
        """The current state, as the disk has it."""
        return read_manifest(self.folder)

    def new_path(self, suffix: str) -> Path:
        """A name that no state has used."""
        return self.folder / f"{secrets.token_hex(6)}{suffix}"

    def publish(
        self, settings: IndexSettings, segments: list[SegmentEntry], model: ModelStamp | None = None,
        sources: tuple[Source, ...] = (),
    ) -> Manifest:  # fmt: skip
        """Make these segments the current state. The files they name must be on the disk."""
        generation = self.manifest.generation + 1 if self.has_index() else 1
        manifest = Manifest(generation, settings, tuple(segments), model, sources)
        content = (json.dumps(asdict(manifest), indent=1) + "\n").encode()
        draft = self.new_path(".tmp")
        with open(draft, "xb") as file:
            file.write(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(content) + content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)  # the names of the new files, before anything names them
        draft.replace(self.folder / MANIFEST)
        sync_folder(self.folder)
        return manifest

    def remove_unused(self) -> None:
        """Remove what the current state does not name, of this writer and of killed ones."""
        # As the disk has it: an interruption may come after the rename and before `publish` returns.
        used = {file.name for file in self.manifest.files()} if self.has_index() else set()
        for path in self.folder.iterdir():
            if _WRITERS_OWN.fullmatch(path.name) and path.name not in used:
                with suppress(OSError):  # a system that keeps mapped files from being removed: the next writer will
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def transaction(folder: Path, create: bool = False) -> Iterator[Transaction]:
    """Write to an index, alone; what is not published is removed.

    Args:
        folder: of the index.
        create: the folder may be new or empty.

    Raises:
        IndexBusy: another process writes to it.
        IndexingError: there is no index and `create` is False, or the folder holds other things.
    """
    work = Transaction(folder)
    if work.has_index() or not create:
        read_manifest(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
        others = [name for name in names if name not in (LOCK, *SYNC_FILES) and not _WRITERS_OWN.fullmatch(name)]
        if others:
            raise IndexingError(f"{folder} is no index and holds {min(others)}: name a new or an empty folder")
    from filelock import FileLock, Timeout  # which takes longer to load than a search

    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise IndexBusy(f"{folder}: another process is writing to this index; try again later") from error
    with lock:
        try:
            with writing(folder):
                yield work
        finally:
            with suppress(IndexingError, OSError):
                work.remove_unused()
