"""One Arrow IPC file of captioned images: opened, its columns and offsets checked, its texts read.

Checking reads the offsets, some bytes per row, but neither images nor texts. What is wrong with a file is a
DataError that names it; what is wrong with one text is a BrokenSample.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import types

from lexlip_data.errors import BrokenSample, DataError, one_line
from lexlip_data.sources.files import is_name, require_file

REQUIRED_COLUMNS = ("image", "caption", "image_id")
COLUMNS = (*REQUIRED_COLUMNS, "long_caption")
METADATA = b"lexlip"  # of the schema: what the converter says of a file it made
MAX_SHARDS = 1_000_000
CHECKSUM = "crc32"  # of a record batch's rows, in its own metadata
_COPY_AGAIN = "it may be a broken copy: copy or convert it again"


def open_arrow(path: str | Path, mapped: bool = True) -> pa.ipc.RecordBatchFileReader:
    """Open one Arrow IPC file.

    Args:
        mapped: by memory map, which copies nothing, but ends the process where the disk cannot give a page.
    Raises:
        DataError: the file is absent, truncated or not an Arrow IPC file, or its columns are not what they must be.
    """
    require_file(path)
    try:
        # Views into a map leave nothing to do in threads, which forked workers had better not start.
        source = pa.memory_map(str(path), "r") if mapped else pa.OSFile(str(path), "rb")
        file = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
        _check_columns(path, file.schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a complete Arrow IPC file ({one_line(error)}); {_COPY_AGAIN}") from error
    return file


def read_metadata(path: str | Path) -> dict:
    """What the converter wrote into a file: name, split, fingerprint (names), shard, shards, listed (int), and more.

    {} where another program made it, or it is damaged.
    """
    try:
        content = json.loads((open_arrow(path, mapped=False).schema.metadata or {})[METADATA])
        names = [content[key] for key in ("name", "split", "fingerprint")]
        # Older files do not say how many images were listed.
        numbers = shard, shards, listed = content["shard"], content["shards"], content.get("listed", 0)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # DataError is a ValueError
        return {}
    good = all(isinstance(name, str) and is_name(name) for name in names) and all(type(n) is int for n in numbers)
    return content if good and 0 <= shard < shards <= MAX_SHARDS and listed >= 0 else {}


def _check_columns(path: str | Path, schema: pa.Schema) -> None:
    names = schema.names
    if missing := [column for column in REQUIRED_COLUMNS if column not in names]:
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns are {one_line(', '.join(names))}")
    if doubled := [column for column in COLUMNS if names.count(column) > 1]:
        raise DataError(f"{path}: the column {doubled[0]} occurs twice")
    for name, usable, wanted in (
        (
            "image",
            lambda kind: kind in (pa.binary(), pa.large_binary()),
            ", not binary: it must hold the encoded image files",
        ),
        ("image_id", lambda kind: _is_text(kind) or types.is_integer(kind), "; it must hold texts or whole numbers"),
        ("caption", _is_text_or_list, "; it must hold texts or lists of texts"),
        ("long_caption", _is_text_or_list, "; it must hold texts or lists of texts"),
    ):
        if name in names and not usable(kind := schema.field(name).type):
            raise DataError(f"{path}: column {name} is {one_line(kind)}{wanted}")


def _is_text_or_list(kind: pa.DataType) -> bool:
    return _is_text(kind.value_type if is_list(kind) else kind)


def is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)


def read_batch(file: pa.ipc.RecordBatchFileReader, path: str | Path, number: int) -> pa.RecordBatch:
    """A record batch as it is.

    Raises:
        DataError: it cannot be read; naming the file and the batch.
    """
    try:
        return file.get_batch(number)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, number, error) from error


def check_batch(batch: pa.RecordBatch, path: str | Path, number: int) -> None:
    """Refuse a batch in which an offset or a length points outside. Reads neither images nor texts.

    Raises:
        DataError: naming file, batch and column.
    """
    for name in COLUMNS:
        if name in batch.schema.names:
            try:
                _check_offsets(batch.column(name))
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise _unreadable(path, number, f"column {name}: {error}") from error


def _unreadable(path: str | Path, number: int, why: object) -> DataError:
    return DataError(f"{path}: record batch {number} cannot be read ({one_line(why)}); {_COPY_AGAIN}")


def _check_offsets(column: pa.Array) -> None:
    """Raise pa.ArrowInvalid where an offset or a length points outside; reads none of the values.

    Texts are taken as bytes: one that is not UTF-8 is one broken sample, not a broken file.
    """
    column.validate()
    column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if types.is_list(kind) or types.is_large_list(kind):
        return (pa.list_ if types.is_list(kind) else pa.large_list)(_as_bytes(kind.value_type))
    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)


def read_text(cell: pa.Scalar, column: str, most: int) -> str:
    """The text of a cell. Raises BrokenSample if it is null, not UTF-8, or surely longer than `most` characters."""
    if types.is_dictionary(cell.type):
        cell = cell.value
    buffer = cell.as_buffer() if cell.is_valid else None
    if buffer is None:
        raise BrokenSample(f"{column} is null")
    if buffer.size > 4 * most:  # before it is decoded: four bytes are the longest character
        raise BrokenSample(f"{column} of {buffer.size:,} bytes, {most:,} characters are allowed")
    try:
        return str(memoryview(buffer), "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenSample(f"{column} is not UTF-8 text ({error.reason})") from error


def rows_checksum(rows: Iterable[dict]) -> int:
    """The checksum of a record batch's rows, each a dict of its cells."""
    crc = 0
    for row in rows:
        texts = [row.get(name) for name in ("caption", "image_id", "split")] + [row.get("long_caption") or []]
        crc = zlib.crc32(json.dumps(texts).encode(), zlib.crc32(row["image"] or b"", crc))
    return crc
