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
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError

MAGIC = b"LEXLIPIX"
VERSION = 1
_TAIL = struct.Struct("<II8s")
_ALIGN = 8


class Writer:
    """Writes a container section by section.

    Attributes:
        bytes, crc32: of everything written so far; of the whole file after `close`.
    """

    def __init__(self, path: Path, kind: str):
        self._file: BinaryIO = open(path, "xb")
        self._kind = kind
        self._sections: dict[str, list[int]] = {}
        self.bytes = 0
        self.crc32 = 0
        self._write(MAGIC)

    def begin(self, name: str) -> None:
        """Start a section; `write` appends to it."""
        self._write(bytes(-self.bytes % _ALIGN))
        self._sections[name] = [self.bytes, 0, 0]

    def write(self, data: bytes | np.ndarray) -> None:
        """Append to the section that was begun last."""
        section = self._sections[next(reversed(self._sections))]
        data = (
            memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8)) if isinstance(data, np.ndarray) else data
        )
        self._write(data)
        section[1] += len(data)
        section[2] = zlib.crc32(data, section[2])

    def close(self, **facts: object) -> None:
        """Write the footer with further facts, and bring everything to the disk."""
        footer = {"version": VERSION, "kind": self._kind, "sections": self._sections, **facts}
        encoded = json.dumps(footer).encode()
        self._write(bytes(-self.bytes % _ALIGN))
        self._write(encoded)
        self._write(_TAIL.pack(len(encoded), zlib.crc32(encoded), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


class Reader:
    """A container mapped into memory. Footer and places are checked, a section's bytes only by `section(check=True)`.

    Args:
        path: the file.
        kind: what it must be.
        size: bytes it must have, if known.

    Attributes:
        footer: the decoded footer.

    Raises:
        DamagedIndex: not such a file, cut short, or a footer that is not what was written.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: Path, kind: str, size: int | None = None):
        self.path = path
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise DamagedIndex(f"{path} has {found:,} bytes instead of {size:,}")
            if found < len(MAGIC) + _TAIL.size:
                raise DamagedIndex(f"{path} has only {found} bytes: no file of an index")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)
        length, crc, magic = _TAIL.unpack(self.bytes[-_TAIL.size :].tobytes())
        if magic != MAGIC or self.bytes[: len(MAGIC)].tobytes() != MAGIC:
            raise DamagedIndex(f"{path} does not begin and end as a file of an index does")
        end = found - _TAIL.size
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
        if check and zlib.crc32(data) != crc:
            raise DamagedIndex(f"{self.path}: section {name} is damaged")
        return data.view(dtype)

    def damage(self, crc32: int) -> list[str]:
        """Read the whole file; returns what is wrong with it, nothing if all is well.

        Args:
            crc32: of the whole file, as noted when it was written.
        """
        if zlib.crc32(self.bytes) == crc32:
            return []
        names = []
        for name, (begin, length, crc) in self.footer["sections"].items():
            if zlib.crc32(self.bytes[begin : begin + length]) != crc:
                names.append(f"{self.path}: section {name} is damaged")
        return names or [f"{self.path} is damaged between its sections"]
