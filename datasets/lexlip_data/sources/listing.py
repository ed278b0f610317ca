"""The images of a folder, for every command that takes one: which files are images, which are not, and what is told.

A file whose suffix is that of an image is one, whatever it holds: its decoder says if it cannot be used. Any other file
is one if its first bytes are those of an image. Names that begin with a dot, and what systems put beside images
(`@eaDir`, `__MACOSX`, `Thumbs.db`), are left out. A link counts where it leads to what the folder does not list anyway,
and stays inside the allowed folders; so each file is listed once, and loops end. All else is counted.

Costs a system call per folder and, for files of other suffixes, opening each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lexlip_data.errors import one_line
from lexlip_data.sources.files import is_hidden, is_inside, is_utf8, real_roots
from lexlip_data.sources.kinds import READ, SUFFIXES, UNREAD, advice_for, kind_of_file
from lexlip_data.sources.skipped import Skipped
from lexlip_data.sources.source import hash_id

_TWICE = "lead to files that are listed anyway"
_TOLD = 8  # suffixes, or kinds, that are named in a line
_LISTED = 1000  # links and unread images that are listed one by one


class Listing:
    """One walk through a folder.

    Iterating gives the paths of its images relative to it, with forward slashes, in an order that depends on names
    alone. What was left out is known once the iteration has ended: `left_out` lists what may have been meant as an
    image, `notes()` says all of it in few lines.

    Args:
        folder: where to look.
        roots: other folders that links may lead into.
        also: kinds of files (`kinds`) that are listed besides images.
    """

    def __init__(self, folder: str | Path, roots: Sequence[str | Path] = (), also: Sequence[str] = ()):
        self._wanted = READ | set(also)
        self.folder = Path(folder)
        self.roots = real_roots(self.folder, roots)
        self.left_out: list[Skipped] = []
        self._hidden: Counter[str] = Counter()  # "files" or "folders"
        self._first: dict[str, str] = {}  # of what is counted -> an example
        self._others: Counter[str] = Counter()  # by suffix, and kind if that is an image's
        self._links: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()  # folders that cannot be read
        self._folders: set[str] = set()  # real paths of those that were entered through a link
        self._files: set[int] = set()  # hashes of the real paths of files that were reached through one

    def __iter__(self) -> Iterator[str]:
        # (path, name, whether a link leads there). No recursion: folders may be nested deeply.
        waiting: list[tuple[str, str, bool]] = [(str(self.folder), "", False)]
        while waiting:
            path, name, linked = waiting.pop()
            if not linked or self._enters(os.path.realpath(path), name):
                below: list[tuple[str, str, bool]] = []
                yield from self._of_folder(path, name and name + "/", linked, below)
                waiting += reversed(below)

    def _of_folder(self, folder: str, prefix: str, linked: bool, below: list) -> Iterator[str]:
        """The images in a folder itself; what lies below or is linked is added to `below`."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._count(self._closed, one_line(error.strerror or error), prefix or folder)
            return
        for entry in entries:
            name = prefix + entry.name
            if is_hidden(entry.name):
                self._count(self._hidden, "folders" if _is_folder(entry) else "files", name)
            elif entry.is_symlink():
                if self._follows(entry, name):
                    if entry.is_dir():
                        below.append((entry.path, name, True))
                    elif self._is_image(entry.path, name):
                        yield name
            elif entry.is_dir(follow_symlinks=False):
                below.append((entry.path, name, linked))
            elif linked and not self._is_new(entry.path):
                self._count(self._links, _TWICE, name)
            elif self._is_image(entry.path, name):
                yield name

    def _follows(self, entry: os.DirEntry, name: str) -> bool:
        """Whether a link leads to a folder that may be entered, or to a file that is not listed without it."""
        try:
            real = os.path.realpath(entry.path, strict=True)
        except OSError:  # nothing there, or a ring of links
            self._leave_out_link(name, "missing", "lead nowhere", f"a link to {_target(entry)}, which is not there")
            return False
        if not is_inside(real, self.roots):
            self._leave_out_link(name, "outside", "lead out of the folder", f"a link to {real}")
            return False
        if not entry.is_dir() and (self._is_listed(real) or not self._is_new(real)):
            self._count(self._links, _TWICE, name)
            return False
        return True

    def _enters(self, real: str, name: str) -> bool:
        if self._is_listed(real) or real in self._folders:
            self._count(self._links, "are linked folders that were not entered, as their files are listed anyway", name)
            return False
        self._folders.add(real)
        return True

    def _is_listed(self, real: str) -> bool:
        """Whether the walk comes to a real path without a link."""
        root = self.roots[0]
        if not is_inside(real, [root]):
            return False
        return not any(is_hidden(part) for part in os.path.relpath(real, root).split(os.sep) if part != ".")

    def _is_new(self, path: str) -> bool:
        code = hash_id("", os.path.realpath(path))
        if code in self._files:
            return False
        self._files.add(code)
        return True

    def _is_image(self, path: str, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        kind = "" if suffix in SUFFIXES else kind_of_file(path)
        if suffix not in SUFFIXES and kind not in self._wanted:
            self._leave_out_file(name, suffix, kind)
            return False
        if not is_utf8(name):
            self.left_out.append(Skipped("", ascii(name), "broken", "the file's name is not UTF-8"))
            self._count(self._others, "names that are not UTF-8", ascii(name))
            return False
        return True

    def _leave_out_file(self, name: str, suffix: str, kind: str | None) -> None:
        shown = one_line(suffix, 20) or "without a suffix"
        if kind in UNREAD:
            shown += f" ({kind}: an image, but of a kind that is not read)"
            self._list(Skipped(name, name, "unread", f"{kind}, which is not read; {advice_for([kind])}"))
        elif kind is None:
            shown += " (not ordinary files, or they cannot be opened)"
        self._count(self._others, shown, name)

    def _leave_out_link(self, name: str, kind: str, words: str, reason: str) -> None:
        self._count(self._links, words, f"{name}: {reason}")
        self._list(Skipped(name, name, kind, reason))

    def _list(self, item: Skipped) -> None:
        if len(self.left_out) < _LISTED and is_utf8(item.path):
            self.left_out.append(item)

    def _count(self, counter: Counter[str], what: str, example: str) -> None:
        counter[what] += 1
        self._first.setdefault(what, one_line(ascii(example) if not is_utf8(example) else example))

    def notes(self) -> list[str]:
        """What was left out, a line for each kind of it."""
        notes = []
        if self._others:
            unread = [what for what in self._others if what.endswith("not read)")]
            told = dict.fromkeys([what for what, _ in self._others.most_common(_TOLD)] + unread)
            parts = [f"{self._others[what]:,} {what}" for what in told]
            if more := sum(count for what, count in self._others.items() if what not in told):
                parts.append(f"{more:,} others")
            advice = f"; {advice_for([kind for kind in UNREAD if f'({kind}:' in ' '.join(unread)])}" if unread else ""
            notes.append(f"not read: {', '.join(parts)} (e.g. {self._example(self._others)}){advice}")
        if self._hidden:
            counts = " and ".join(f"{count:,} {what}" for what, count in self._hidden.items())
            notes.append(f"left out: {counts} that are hidden or a system's own (e.g. {self._example(self._hidden)})")
        for what, count in self._links.items():
            advice = "; --picture-roots DIR allows the folder they lead to" if "out of" in what else ""
            notes.append(f"links: {count:,} {what} (e.g. {self._first[what]}){advice}")
        for why, count in self._closed.items():
            notes.append(f"not entered: {count:,} folders that cannot be read, {why} (e.g. {self._first[why]})")
        return [f"{self.folder}: {note}" for note in notes]

    def _example(self, counter: Counter[str]) -> str:
        return self._first[next(iter(counter))]


def _is_folder(entry: os.DirEntry) -> bool:
    """By what the listing already says: `os.path.isdir` would ask the file system again."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _target(entry: os.DirEntry) -> str:
    with suppress(OSError):
        return one_line(os.readlink(entry.path))
    return "?"
