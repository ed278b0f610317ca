"""What an index's sync remembers: which files were seen, with which content, and which documents they became.

    sync.journal        in the index's folder; a line of JSON for each step, the last of a name counts

    {"lexlip_sync": 1}                                          the first line
    {"root": "/photos", "settings": {"id_prefix": "", ...}}     a folder
    {"root": "/photos", "pending": ["a.jpg"]}                   these ids may be published from here on
    {"root": "/photos", "files": {"a.jpg": [size, mtime, digest, why, moments], "b.jpg": null}}     and now they are

A step is written after the change of the index that it describes, and its ids before: whenever a process is killed, the
next one finds every document that it may have published. A line that was cut off is dropped. The journal is written
anew, without what no longer counts, when half of it is that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lexlip.errors import IndexingError
from lexlip.index.store import SYNC_FILES
from lexlip.utils.files import write_whole
from lexlip_data.sources.files import sync_folder, writing

JOURNAL = SYNC_FILES[0]
_FIRST = {"lexlip_sync": 1}


class Entry(NamedTuple):
    """A file as it was seen.

    Attributes:
        size, mtime: bytes, and nanoseconds since 1970; 0 where the time is too near to tell a later change.
        digest: of its content.
        why: there is no document of it; else empty.
        moments: of a video, in seconds; each is a document.
    """

    size: int
    mtime: int
    digest: str
    why: str = ""
    moments: tuple[float, ...] = ()

    def names(self, name: str) -> list[str]:
        """Ids of its documents, without the prefix of its folder."""
        if self.why:
            return []
        return [f"{name}#t={moment:.1f}" for moment in self.moments] or [name]


@dataclass
class RootState:
    """A folder: its settings, its files by name, and ids that may have been published."""

    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)


class SyncState:
    """The state of an index; empty where none is there.

    Attributes:
        roots: by their absolute paths.

    Raises:
        IndexingError: a journal that is none.
    """

    def __init__(self, index: str | Path):
        self._path = Path(index) / JOURNAL
        self.roots: dict[str, RootState] = {}
        self._lines = 0
        self._held = False
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for number, line in enumerate(lines[:-1]):  # after the last line end: nothing, or what was cut off
            try:
                self._replay(json.loads(line), number)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise IndexingError(
                    f"{self._path}, line {number + 1} is damaged; remove the file, and the next sync encodes all anew"
                ) from error
        if lines[-1]:
            self.rewrite()

    def _replay(self, line: dict, number: int) -> None:
        if number == 0:
            if line != _FIRST:
                raise ValueError
            return
        root = self.roots.setdefault(line["root"], RootState())
        self._lines += 1
        if "settings" in line:
            root.settings = dict(line["settings"])
        root.pending = set(line.get("pending", ())) | (root.pending if "files" not in line else set())
        if "files" in line:
            for name, values in line["files"].items():
                self._lines += 1
                if values is None:
                    root.files.pop(name, None)
                else:
                    size, mtime, digest, why, moments = values
                    root.files[name] = Entry(int(size), int(mtime), str(digest), str(why), tuple(map(float, moments)))

    def configure(self, root: str, settings: Mapping[str, Any]) -> None:
        """Remember a folder's settings."""
        self._append({"root": root, "settings": dict(settings)})

    def announce(self, root: str, ids: Iterable[str]) -> None:
        """Before documents are published."""
        self._append({"root": root, "pending": list(ids)})

    def note(self, root: str, files: Mapping[str, Entry | None], pending: Iterable[str] = ()) -> None:
        """After they are: the files that they are of, files that are gone (None), and ids that are still open."""
        self._append({"root": root, "files": files, "pending": sorted(pending)})

    def begin_anew(self) -> None:
        """Without what it remembers; the disk keeps that until `forget`, and gets nothing until `keep`."""
        self.roots, self._lines, self._held = {}, 0, True

    def forget(self) -> None:
        """Remove the journal, just before its index is replaced: without one, a sync takes nothing as known."""
        self._path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Write what came since `begin_anew`, now that the index is replaced."""
        self._held = False
        self.rewrite()

    def tidy(self) -> None:
        """Write the journal anew where half of it no longer counts."""
        live = sum(2 + len(root.files) for root in self.roots.values())
        if self._lines > 2 * live + 100:
            self.rewrite()

    def rewrite(self) -> None:
        """Write the journal anew."""
        lines: list[dict] = [dict(_FIRST)]
        for name, root in self.roots.items():
            lines += [
                {"root": name, "settings": root.settings}, {"root": name, "files": root.files},
                {"root": name, "pending": sorted(root.pending)},
            ]  # fmt: skip
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        write_whole(self._path, lambda file: file.write(content))
        self._lines = sum(2 + len(root.files) for root in self.roots.values())

    def _append(self, line: dict) -> None:
        if self._held:
            self._replay(line, 1)
            return
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.rewrite()
            sync_folder(self._path.parent)
        with writing(self._path), open(self._path, "ab") as file:
            file.write((json.dumps(line) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self._replay(line, 1)
