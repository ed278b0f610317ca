"""One file of named sections with checksums. Segments and their deletions are kept in such files.

    "LEXLIPIX"   8 bytes
    sections     each from a multiple of 8 on, zeros between
    footer       JSON in UTF-8: {"version": 1, "kind": ..., "sections": {name: [begin, bytes, crc32]}, ...}
    its length   4 bytes, little-endian, and its CRC-32, 4 bytes
    "LEXLIPIX"   8 bytes

The footer comes last, so that a writer never has to know a section's length before it is written.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index.check import Facts, require

MAGIC = b"LEXLIPIX"
VERSION = 1
_TAIL = struct.Struct("<II8s")
_ALIGN = 8
# Shorter files are read: an index of many small segments then takes no descriptors, and is opened faster.
READ_WHOLE = 1 << 20
_MAX_FOOTER = 1 << 16
WATCH_SECONDS = 0.02  # between two looks at a mapped file's length: each costs a twentieth of a search
# Before Python 3.13 a map keeps a descriptor of its own.
_NO_DESCRIPTOR = {"trackfd": False} if sys.version_info >= (3, 13) else {}
_NO_MORE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest knows it."""

    name: str
    bytes: int
    crc32: int


class ContainerWriter:
    """Writes a container section by section.

    Args:
        path: a new file.
        kind: what it is.
    """

    def __init__(self, path: Path, kind: str):
        self._file: BinaryIO = open(path, "xb")
        self._name, self._kind = path.name, kind
        self._sections: dict[str, list[int]] = {}
        self._bytes = self._crc32 = 0
        self._write(MAGIC)

    def begin(self, name: str, data: bytes | np.ndarray = b"") -> None:
        """Start a section; `write` appends to it."""
        self._write(bytes(-self._bytes % _ALIGN))
        self._sections[name] = [self._bytes, 0, 0]
        self.write(data)

    def write(self, data: bytes | np.ndarray) -> None:
        """Append to the section that was begun last."""
        section = self._sections[next(reversed(self._sections))]
        content = memoryview(
            data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        )
        self._write(content)
        section[1] += len(content)
        section[2] = zlib.crc32(content, section[2])

    def close(self, **facts: object) -> FileEntry:
        """Write the footer with further facts, and bring everything to the disk."""
        footer = {"version": VERSION, "kind": self._kind, "sections": self._sections, **facts}
        encoded = json.dumps(footer).encode()
        self._write(bytes(-self._bytes % _ALIGN))
        self._write(encoded)
        self._write(_TAIL.pack(len(encoded), zlib.crc32(encoded), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._name, self._bytes, self._crc32)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._bytes += len(data)
        self._crc32 = zlib.crc32(data, self._crc32)


class ContainerReader:
    """A container in memory, or mapped into it. Its footer is checked, a section's bytes only by `section(check=True)`.

    Args:
        folder: of the index.
        entry: the file as the manifest knows it.
        kind: what it must be.

    Attributes:
        path: of the file.
        facts, footer: of the footer, to be checked and as they are.

    Raises:
        DamagedIndex: not such a file, cut short, or a footer that is not what was written.
        FileNotFoundError: no such file.
        IndexingError: a file of another format, or more files than may be open.
    """

    def __init__(self, folder: Path, entry: FileEntry, kind: str):
        self.path = path = folder / entry.name
        self._crc32 = entry.crc32
        self.bytes, self._mapped = _contents(path, entry.bytes)
        self._looked = 0.0
        length, crc, magic = _TAIL.unpack(self.bytes[-_TAIL.size :].tobytes())
        if magic != MAGIC or self.bytes[: len(MAGIC)].tobytes() != MAGIC:
            raise DamagedIndex(f"{path} does not begin and end as a file of an index does")
        end = entry.bytes - _TAIL.size
        require(length <= min(_MAX_FOOTER, end - len(MAGIC)), path, f"a footer of {length:,} bytes")
        encoded = self.bytes[end - length : end].tobytes()
        require(zlib.crc32(encoded) == crc, path, "the footer's checksum is wrong")
        self.facts = Facts.parse(encoded, path)
        version = self.facts.whole("version")
        if version != VERSION:
            raise IndexingError(
                f"{path} is of format {version}, this code reads {VERSION}: use the lexlip that wrote it"
            )
        self.facts.text("kind", (kind,))
        self.footer = self.facts.values
        self._sections = {name: self._place(name, end - length) for name in self.facts.part("sections").values}

    def _place(self, name: str, end: int) -> tuple[int, int, int]:
        """A section's begin, bytes and checksum."""
        place = self.facts.part("sections").values[name]
        good = isinstance(place, list) and len(place) == 3 and all(type(number) is int for number in place)
        good = good and place[0] >= len(MAGIC) and place[0] % _ALIGN == 0 and 0 <= place[1] <= end - place[0]
        require(good, self.path, f"section {name[:20]!r} is not inside the file")
        return tuple(place)

    def section(self, name: str, dtype: type | str = np.uint8, check: bool = True) -> np.ndarray:
        """A section's bytes as numbers, not copied.

        Args:
            check: compare its checksum, which reads all of it.

        Raises:
            DamagedIndex: there is none, the checksum is wrong, or the last number is cut short.
        """
        require(name in self._sections, self.path, f"there is no section {name}")
        begin, length, crc = self._sections[name]
        data = self.bytes[begin : begin + length]
        if check and zlib.crc32(data.data) != crc:
            raise DamagedIndex(f"{self.path}: section {name} is damaged")
        require(length % np.dtype(dtype).itemsize == 0, self.path, f"section {name} ends inside a number")
        return data.view(dtype)

    def require_whole(self) -> None:
        """Refuse a file that was cut short while it is mapped: to read what is gone would end the process.

        It is looked at now and then. Who cuts files of an index in use at that very moment still ends the process.

        Raises:
            DamagedIndex: it was.
        """
        if self._mapped is None or (now := time.monotonic()) < self._looked + WATCH_SECONDS:
            return
        self._looked = now
        try:
            facts = os.stat(self._mapped[0])
        except OSError:
            return  # removed by a writer; what is mapped stays
        if facts.st_ino == self._mapped[1] and facts.st_size < len(self.bytes):
            raise DamagedIndex(f"{self.path} has {facts.st_size:,} bytes instead of {len(self.bytes):,}")

    def damage(self) -> list[str]:
        """Read the whole file; returns where its checksums are wrong, nothing if they are right."""
        self.require_whole()
        if zlib.crc32(self.bytes.data) == self._crc32:
            return []
        lines = [
            f"{self.path}: section {name} is damaged"
            for name, (begin, length, crc) in self._sections.items()
            if zlib.crc32(self.bytes[begin : begin + length].data) != crc
        ]
        return lines or [f"{self.path} is damaged between its sections"]


def _contents(path: Path, size: int) -> tuple[np.ndarray, tuple[str, int] | None]:
    """A file's bytes, and its name and number where they are mapped."""
    try:
        require(stat.S_ISREG(os.stat(path).st_mode), path, "no plain file")  # opening a pipe would wait
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size != size:
                raise DamagedIndex(f"{path} has {facts.st_size:,} bytes instead of {size:,}")
            require(size >= len(MAGIC) + _TAIL.size, path, "too short for a file of an index")
            if size > READ_WHOLE:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, **_NO_DESCRIPTOR)
                return np.frombuffer(mapped, np.uint8, size), (os.fspath(path), facts.st_ino)
            content = file.read(size)
            require(len(content) == size, path, "cut short")
            return np.frombuffer(content, np.uint8), None
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NO_MORE:
            raise IndexingError(
                f"{path}: the index has more segments than files may be open; lexlip index merge, or a higher ulimit -n"
            ) from error
        raise IndexingError(f"{path} cannot be read: {error.strerror}") from error
