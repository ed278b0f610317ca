"""One file of named sections with checksums. Segments and their deletions are kept in such files.

    "LEXLIPIX"   8 bytes
    sections     each from a multiple of 8 on, zeros between
    footer       JSON in UTF-8: {"version": 1, "kind": ..., "sections": {name: [begin, bytes, crc32]}, ...}
    its length   4 bytes, little-endian, and its CRC-32, 4 bytes
    "LEXLIPIX"   8 bytes

The footer comes last, so that a writer never has to know a section's length before it is written.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError

MAGIC = b"LEXLIPIX"
VERSION = 1
_TAIL = struct.Struct("<II8s")
_ALIGN = 8


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
    """A container mapped into memory. Its footer is checked, a section's bytes only by `section(check=True)`.

    Args:
        folder: of the index.
        entry: the file as the manifest knows it.
        kind: what it must be.

    Attributes:
        path: of the file.
        footer: the decoded footer.

    Raises:
        DamagedIndex: not such a file, cut short, or a footer that is not what was written.
        FileNotFoundError: no such file.
    """

    def __init__(self, folder: Path, entry: FileEntry, kind: str):
        self.path = path = folder / entry.name
        self._crc32 = entry.crc32
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise DamagedIndex(f"{path} has {size:,} bytes instead of {entry.bytes:,}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)
        length, crc, magic = _TAIL.unpack(self.bytes[-_TAIL.size :].tobytes())
        if magic != MAGIC or self.bytes[: len(MAGIC)].tobytes() != MAGIC:
            raise DamagedIndex(f"{path} does not begin and end as a file of an index does")
        end = size - _TAIL.size
        encoded = self.bytes[max(end - length, 0) : end].tobytes()
        if len(encoded) != length or zlib.crc32(encoded) != crc:
            raise DamagedIndex(f"{path}: the footer's checksum is wrong")
        self.footer = json.loads(encoded)
        if self.footer["version"] != VERSION:
            raise IndexingError(
                f"{path} is of format {self.footer['version']}, this code reads {VERSION}: use the lexlip that wrote it"
            )
        if self.footer["kind"] != kind:
            raise DamagedIndex(f"{path} is a file of {self.footer['kind']}, not of {kind}")

    def section(self, name: str, dtype: type | str = np.uint8, check: bool = True) -> np.ndarray:
        """A section's bytes as numbers, not copied.

        Args:
            check: compare its checksum, which reads all of it.

        Raises:
            DamagedIndex: the checksum is wrong.
        """
        begin, length, crc = self.footer["sections"][name]
        data = self.bytes[begin : begin + length]
        if check and zlib.crc32(data.data) != crc:
            raise DamagedIndex(f"{self.path}: section {name} is damaged")
        return data.view(dtype)

    def damage(self) -> list[str]:
        """Read the whole file; returns what is wrong with it, nothing if all is well."""
        if zlib.crc32(self.bytes.data) == self._crc32:
            return []
        lines = [
            f"{self.path}: section {name} is damaged"
            for name, (begin, length, crc) in self.footer["sections"].items()
            if zlib.crc32(self.bytes[begin : begin + length].data) != crc
        ]
        return lines or [f"{self.path} is damaged between its sections"]
