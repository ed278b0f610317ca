"""What an Arrow file would become in memory, read from its metadata before anything is unpacked.

A compressed buffer begins with its length without compression, and Arrow takes that much memory before it unpacks, or
fails; so a few kilobytes could ask for gigabytes. Columns without values cost no byte, so a file could also claim any
number of rows. Costs some microseconds per record batch, and 8 bytes read per compressed buffer.

The format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lexlip_data.errors import DataError

# Images do not shrink, ids, texts and vectors to a third or so; many of the same value to less, in small files.
MOST_TIMES = 16  # a file may be so much larger without compression,
MOST_SMALL = 256 << 20  # and so many bytes
_MAGIC = b"ARROW1"
_MARK = b"\xff\xff\xff\xff"  # before a message's length; old files lack it
_OLD_COMPRESSION = b"ARROW:experimental_compression"
_DICTIONARY, _BATCH = 2, 3  # kinds of messages that have rows
# Numbers of fields in File.fbs and Message.fbs of the format.
_FOOTER_BLOCKS = (2, 3)  # dictionaries, record batches
_KIND, _HEADER, _BODY = 1, 2, 3  # of Message
_DATA = 1  # of DictionaryBatch: a RecordBatch
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3  # of RecordBatch
_BLOCK = np.dtype([("at", "<i8"), ("length", "<i4"), ("", "<i4"), ("body", "<i8")])
_BUFFER = np.dtype([("at", "<i8"), ("length", "<i8")])


def require_proportion(source: pa.NativeFile, path: object, stream: bool = False) -> None:
    """Refuse an Arrow file, or stream, that would take memory out of proportion to its length.

    Raises:
        DataError: it would, or it is not laid out as such a file is.
    """
    size, rows, unpacked, place = source.size(), 0, 0, source.tell()
    try:
        for metadata, body in _in_stream(source) if stream else _in_file(source):
            some_rows, some_bytes = _asked(source, metadata, body)
            rows, unpacked = rows + some_rows, unpacked + some_bytes
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f"{path}: its Arrow metadata is damaged; copy or make it again") from error
    finally:
        source.seek(place)
    if unpacked > MOST_TIMES * size + MOST_SMALL:
        raise DataError(
            f"{path}: its {size:,} bytes would unpack to {unpacked:,}, more than {MOST_TIMES} times as many; if it is "
            "sound, write it again with compression=None"
        )
    if rows > size + unpacked:
        raise DataError(f"{path}: it claims {rows:,} rows in {size:,} bytes")


def _asked(source: pa.NativeFile, metadata: memoryview, body: int) -> tuple[int, int]:
    """The rows of a message, and the bytes that its buffers are to be unpacked to."""
    message = _Table.root(metadata)
    kind, header = message.number(_KIND, "<B"), message.table(_HEADER)
    if kind not in (_DICTIONARY, _BATCH) or header is None:
        return 0, 0
    batch = header.table(_DATA) if kind == _DICTIONARY else header
    if batch is None:
        return 0, 0
    rows = batch.number(_ROWS, "<q")
    if batch.table(_COMPRESSION) is None and _OLD_COMPRESSION not in bytes(metadata):
        return rows, 0
    unpacked = 0
    for at, length in batch.structs(_BUFFERS, _BUFFER).tolist():
        if length >= 8:
            source.seek(body + at)
            (size,) = struct.unpack("<q", source.read(8))
            if size < -1:
                raise ValueError("a buffer of less than no bytes")
            unpacked += max(size, 0)  # -1: it is not compressed
    return rows, unpacked


def _in_file(source: pa.NativeFile) -> Iterator[tuple[memoryview, int]]:
    """(metadata, where its body begins) of each message that the footer names."""
    end = source.size() - len(_MAGIC) - 4
    (length,) = struct.unpack("<i", _read(source, end, 4))
    if not 0 < length <= end:
        raise ValueError("a footer that is longer than the file")
    footer = _Table.root(_read(source, end - length, length))
    for field in _FOOTER_BLOCKS:
        for at, length, _, _ in footer.structs(field, _BLOCK).tolist():
            metadata = _read(source, at, length)
            yield metadata[8 if metadata[:4] == _MARK else 4 :], at + length


def _in_stream(source: pa.NativeFile) -> Iterator[tuple[memoryview, int]]:
    at = 0
    while at < source.size() and len(head := _read(source, at, 8)) >= 4:
        start = 8 if head[:4] == _MARK else 4
        (length,) = struct.unpack("<i", head[start - 4 : start])
        body = at + start + length
        if length <= 0 or body > source.size():  # the end; or it is cut short, which Arrow says when it reads on
            return
        metadata = _read(source, at + start, length)
        yield metadata, body
        at = body + max(_Table.root(metadata).number(_BODY, "<q"), 0)


def _read(source: pa.NativeFile, at: int, length: int) -> memoryview:
    """Some bytes of a file, not copied where it is mapped; fewer at its end."""
    if not 0 <= at <= source.size() or length < 0:
        raise ValueError("a place outside the file")
    source.seek(at)
    return memoryview(source.read_buffer(min(length, source.size() - at))).cast("B")


class _Table:
    """A table of flatbuffers: a place in some bytes, from which its fields are found by number."""

    def __init__(self, data: memoryview, at: int):
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _field(self, number: int) -> int | None:
        """Where a field is; None if it is not there."""
        fields = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", self._data, fields)[0]:
            return None
        (distance,) = struct.unpack_from("<H", self._data, fields + 4 + 2 * number)
        return self._at + distance if distance else None

    def number(self, number: int, layout: str) -> int:
        at = self._field(number)
        return 0 if at is None else struct.unpack_from(layout, self._data, at)[0]

    def _target(self, number: int) -> int | None:
        at = self._field(number)
        return None if at is None else at + struct.unpack_from("<I", self._data, at)[0]

    def table(self, number: int) -> _Table | None:
        at = self._target(number)
        return None if at is None else _Table(self._data, at)

    def structs(self, number: int, layout: np.dtype) -> np.ndarray:
        at = self._target(number)
        if at is None:
            return np.empty(0, layout)
        return np.frombuffer(self._data, layout, struct.unpack_from("<I", self._data, at)[0], at + 4)
