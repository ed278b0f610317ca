"""One Arrow IPC file of captioned pictures: opened, its columns and offsets checked, its texts read.

Checking reads the offsets, some bytes per row, but neither pictures nor texts. What is wrong with a file is a
DataError that names it; what is wrong with one text is a BrokenSample.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pyarrow as pa

from lexlip_data.errors import BrokenSample, DataError, one_line
from lexlip_data.sources.files import is_name, require_file

REQUIRED_COLUMNS = ("image", "caption", "image_id")
METADATA = b"lexlip"  # of the schema: what the converter says of a file it made
MAX_SHARDS = 1_000_000
CHECKSUM = "crc32"  # of a record batch's rows, in its own metadata


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
        file = pa.memory_map(str(path), "r") if mapped else pa.OSFile(str(path), "rb")
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
        _check_columns(path, reader.schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a complete Arrow IPC file ({one_line(error)}); it may be a broken copy: copy or convert it "
            "again"
        ) from error
    return reader


def own_metadata(schema: pa.Schema) -> dict:
    """What the converter wrote into a file: name, split, fingerprint (names), shard, shards, listed (int), and more.

    {} where another program made it, or it is damaged.
    """
    try:
        found = json.loads((schema.metadata or {})[METADATA])
        names = [found[key] for key in ("name", "split", "fingerprint")]
        numbers = [found[key] for key in ("shard", "shards")] + [found.get("listed", 0)]  # older files do not say
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    if not all(isinstance(name, str) and is_name(name) for name in names) or not all(
        type(number) is int for number in numbers
    ):
        return {}
    shard, shards, listed = numbers
    return found if 0 <= shard < shards <= MAX_SHARDS and listed >= 0 else {}


def _check_columns(path: str | Path, schema: pa.Schema) -> None:
    names = schema.names
    if missing := [column for column in REQUIRED_COLUMNS if column not in names]:
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns are {one_line(', '.join(names))}")
    if doubled := [column for column in (*REQUIRED_COLUMNS, "long_caption") if names.count(column) > 1]:
        raise DataError(f"{path}: the column {doubled[0]} occurs twice")
    kinds = {name: schema.field(name).type for name in (*REQUIRED_COLUMNS, "long_caption") if name in names}
    if not (pa.types.is_binary(kinds["image"]) or pa.types.is_large_binary(kinds["image"])):
        raise DataError(
            f"{path}: column image is {one_line(kinds['image'])}, not binary: it must hold the encoded picture files"
        )
    if not (_is_text(kinds["image_id"]) or pa.types.is_integer(kinds["image_id"])):
        kind = one_line(kinds["image_id"])
        raise DataError(f"{path}: column image_id is {kind}; it must hold texts or whole numbers")
    for name in ("caption", "long_caption"):
        if name in kinds and not _is_text(kinds[name].value_type if is_list(kinds[name]) else kinds[name]):
            raise DataError(f"{path}: column {name} is {one_line(kinds[name])}; it must hold texts or lists of texts")


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def read_batch(reader: pa.ipc.RecordBatchFileReader, path: str | Path, number: int) -> pa.RecordBatch:
    """A record batch as it is.

    Raises:
        DataError: it cannot be read; naming the file and the batch.
    """
    try:
        return reader.get_batch(number)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, number, error) from error


def check_batch(batch: pa.RecordBatch, path: str | Path, number: int) -> None:
    """Refuse a batch in which an offset or a length points outside. Reads neither pictures nor texts.

    Raises:
        DataError: naming file, batch and column.
    """
    for name in (*REQUIRED_COLUMNS, "long_caption"):
        if name in batch.schema.names:
            try:
                _check_offsets(batch.column(name))
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise _unreadable(path, number, f"column {name}: {error}") from error


def _unreadable(path: str | Path, number: int, why: object) -> DataError:
    return DataError(
        f"{path}: record batch {number} cannot be read ({one_line(why)}); it may be a broken copy: copy or convert it "
        "again"
    )


def _check_offsets(column: pa.Array) -> None:
    """Raise pa.ArrowInvalid where an offset or a length points outside; reads none of the values.

    Texts are taken as bytes: one that is not UTF-8 is one broken sample, not a broken file.
    """
    column.validate()
    kind = column.type
    if is_list(kind) and not pa.types.is_fixed_size_list(kind):
        value = _as_bytes(kind.value_type)
        kind = pa.list_(value) if pa.types.is_list(kind) else pa.large_list(value)
    column.view(_as_bytes(kind)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    return pa.large_binary() if pa.types.is_large_string(kind) else kind


def read_text(cell: pa.Scalar, column: str, most: int) -> str:
    """The text of a cell. Raises BrokenSample if it is null, not UTF-8, or longer than `most` letters can be."""
    if pa.types.is_dictionary(cell.type):
        cell = cell.value
    buffer = cell.as_buffer() if cell.is_valid else None
    if buffer is None:
        raise BrokenSample(f"{column} is null")
    if buffer.size > 4 * most:  # before it is decoded: four bytes are the longest letter
        raise BrokenSample(f"{column} of {buffer.size:,} bytes, {most:,} letters are allowed")
    try:
        return str(memoryview(buffer), "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenSample(f"{column} is not UTF-8 text ({error.reason})") from error


def row_checksum(
    crc: int, image: bytes | memoryview, captions: list[str], image_id: str, split: str, long_captions: list[str]
) -> int:
    """The checksum of the rows so far, taken on over one more row; 0 before the first."""
    return zlib.crc32(json.dumps([captions, image_id, split, long_captions]).encode(), zlib.crc32(image, crc))
