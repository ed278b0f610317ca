"""Plain files as a corpus: a folder of images, and a text file with one document per line."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from lexlip.encode.corpus import mark
from lexlip_data.errors import BrokenSample, DataError, one_line
from lexlip_data.sources.files import read_image
from lexlip_data.sources.kinds import require_text
from lexlip_data.sources.listing import Listing
from lexlip_data.sources.skipped import Skipped
from lexlip_data.sources.source import MAX_CAPTION, usable_caption

_LISTED = 1 << 16  # names held as Python strings at a time
_BLOCK = 1 << 20
_MARK = 1024  # lines between two whose positions are kept
_LONGEST = 4 * MAX_CAPTION + 8  # bytes of a line that may still be short enough


class FolderImages:
    """All images under a folder, by their content (`Listing`); the id is the path from there, with forward slashes.

    Keeps the names, some 50 bytes each. See `lexlip.encode.corpus.Images` for the methods.

    Args:
        folder: where to look.
        picture_roots: other folders that links in it may lead into.
        also: kinds of files besides images, of `lexlip_data.sources.kinds`.

    Raises:
        DataError: no such folder.
    """

    what, ids = "images", "string"

    def __init__(self, folder: str | Path, picture_roots: Sequence[str | Path] = (), also: Sequence[str] = ()):
        self.folder, self.origin = Path(folder), str(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        listing = Listing(self.folder, picture_roots, also)
        self._roots = listing.roots
        names, chunks = iter(listing), [pa.array([], pa.large_string())]
        while some := list(islice(names, _LISTED)):
            chunks.append(pa.array(some, pa.large_string()))
        self.names = pa.concat_arrays(chunks)
        self.left_out, self.notes = listing.left_out, listing.notes()

    def of(self, names: Sequence[str]) -> FolderImages:
        """The same folder with these of its images, or images that it had."""
        part = copy(self)
        part.names = pa.array(names, pa.large_string())
        return part

    def written_after(self, file: Path, names: Sequence[str]) -> Iterator[str]:
        """Those images, of some that may be gone, that were written after a file."""
        seconds = file.stat().st_mtime
        for name in names:
            with suppress(OSError):
                if os.stat(self.folder / name).st_mtime > seconds:
                    yield name

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), _LISTED):
            digest.update("\0".join(self.names[start : start + _LISTED].to_pylist()).encode() + b"\0")
        return digest.hexdigest()

    def image(self, i: int) -> tuple[str, bytes]:
        name = self.name(i)
        return name, read_image(self.folder / name, self._roots)

    def name(self, i: int) -> str:
        return self.names[i].as_py()


class LineTexts:
    """The lines of a UTF-8 text file; the id is the line's number, from 1.

    Reads the file once to count, and keeps the position of every 1,024th line. See `lexlip.encode.corpus.Texts` for the
    methods.

    Raises:
        DataError: no such file.
    """

    what, ids = "texts", "int"

    def __init__(self, path: str | Path):
        self.path, self.origin = Path(path), str(path)
        self.left_out: list[Skipped] = []
        self.notes: list[str] = []
        require_text(path, "a text file with one document per line", json=True)
        digest = hashlib.blake2b(digest_size=16)
        self._marks, lines, position, last = array("q", [0]), 0, 0, b"\n"
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + position + 1
                first = _MARK - 1 - lines % _MARK  # of these line ends, the one before which a marked line begins
                self._marks.extend(ends[first::_MARK].tolist())
                lines, position, last = lines + len(ends), position + len(block), block[-1:]
        self._lines = lines + (last != b"\n")
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._lines

    def fingerprint(self) -> str:
        return self._digest

    def marks(self) -> np.ndarray:
        texts = (item.reason if isinstance(item, Skipped) else item[1] for item in self.read(0, len(self)))
        content = np.fromiter((mark(text)[0] for text in texts), np.uint32, len(self))
        return np.stack([np.zeros_like(content), content], axis=1)  # their ids follow from their place

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str] | Skipped]:
        with open(self.path, "rb") as file:
            file.seek(self._marks[start // _MARK])
            for number in range(start - start % _MARK, stop):
                line = _line(file)
                if number < start:
                    continue
                try:
                    yield number + 1, _text(line, first=number == 0)
                except BrokenSample as error:
                    yield Skipped(str(number + 1), f"{self.origin}, line {number + 1}", "broken", one_line(error))


def _line(file) -> bytes:
    """The next line; of one that is too long, enough to see that it is."""
    line = file.readline(_LONGEST)
    more = line
    while more and not more.endswith(b"\n"):
        more = file.readline(_LONGEST)
    return line


def _text(line: bytes, first: bool) -> str:
    line = line.rstrip(b"\r\n")
    if len(line) >= _LONGEST - 2:
        raise BrokenSample(f"more than {MAX_CAPTION:,} letters")
    try:
        return usable_caption(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenSample(f"not UTF-8 text ({error.reason})") from error
