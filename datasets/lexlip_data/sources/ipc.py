"""One Arrow IPC file of captioned images: opened, its columns and offsets checked, its texts read.

Checking reads the offsets, some bytes per row, but neither images nor texts. What is wrong with a file is a
DataError that names it; what is wrong with one text is a BrokenSample.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from pyarrow import types

from lexlip_data.errors import BrokenImage, BrokenSample, DataError, one_line
from lexlip_data.sources.files import is_name, require_file
from lexlip_data.sources.ipc_bounds import require_proportion
from lexlip_data.sources.kinds import kind_of_file

REQUIRED_COLUMNS = ("image", "caption", "image_id")
COLUMNS = (*REQUIRED_COLUMNS, "long_caption")
METADATA = b"lexlip"  # of the schema: what the converter says of a file it made
MAX_SHARDS = 1_000_000
CHECKSUM = "crc32"  # of a record batch's rows, in its own metadata
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
_MOST_COPIED = 256 << 20  # bytes of a mapped stream that may be decompressed
_WORDS = {"Feather version 1": "a file of Feather version 1", "ORC": "an ORC file", "HTML": "an HTML page"}
_READERS = {
    "Parquet": "pyarrow.parquet.read_table(OLD)", "Feather version 1": "pyarrow.feather.read_table(OLD)",
    "ORC": "pyarrow.orc.read_table(OLD)",
}  # fmt: skip
_BYTES_OF = {
    pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view(),
}  # fmt: skip
_TEXTS = types.is_string, types.is_large_string, types.is_string_view
_BYTES = types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary
_LISTS = types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view
_COPY_AGAIN = "it may be a broken copy: copy or convert it again"


class ArrowStream:
    """A stream read like a file: what `datasets.save_to_disk` writes. Mapped, its batches are pointers into the map."""

    def __init__(self, source: pa.NativeFile, path: str | Path):
        self._reader = pa.ipc.open_stream(source, options=_OPTIONS)
        self.schema, self._source, self._path = self._reader.schema, source, path

    @property
    def num_record_batches(self) -> int:
        return len(self._batches)

    @cached_property
    def _batches(self) -> list[tuple]:
        batches: list[tuple] = []
        before = pa.total_allocated_bytes()
        try:
            while True:
                batches.append(tuple(self._reader.read_next_batch_with_custom_metadata()))
                if pa.total_allocated_bytes() - before > _MOST_COPIED and isinstance(self._source, pa.MemoryMappedFile):
                    raise DataError(
                        f"{self._path}: a compressed Arrow stream, which would be held in memory whole; "
                        f"{_rewrite('pyarrow.ipc.open_stream(OLD).read_all()')}"
                    )
        except StopIteration:
            return batches
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise _unreadable(self._path, len(batches), error) from error

    def get_batch(self, number: int) -> pa.RecordBatch:
        return self._batches[number][0]

    def get_batch_with_custom_metadata(self, number: int) -> tuple:
        return self._batches[number]


ArrowFile: TypeAlias = "pa.ipc.RecordBatchFileReader | ArrowStream"


def open_arrow(path: str | Path, mapped: bool = True) -> ArrowFile:
    """Open one Arrow IPC file, or an Arrow stream.

    Args:
        mapped: by memory map, which copies nothing, but ends the process where the disk cannot give a page.
    Raises:
        DataError: the file is absent, truncated or not an Arrow IPC file, its columns are not what they must be, or it
            would take memory out of proportion to its length.
    """
    require_file(path)
    kind = kind_of_file(path)
    if kind not in ("Arrow", "Arrow stream", "", None):
        how = _READERS.get(kind)
        advice = _rewrite(how) if how else _COPY_AGAIN
        raise DataError(f"{path}: {_WORDS.get(kind, f'a {kind} file')}, not an Arrow IPC file; {advice}")
    try:
        # Views into a map leave nothing to do in threads, which forked workers had better not start.
        source = pa.memory_map(str(path), "r") if mapped else pa.OSFile(str(path), "rb")
        if kind == "Arrow stream":
            file: ArrowFile = ArrowStream(source, path)
        else:
            file = pa.ipc.open_file(source, options=_OPTIONS)
        no_rows = types.is_null(file.schema.field("image").type) if "image" in file.schema.names else False
        no_rows = no_rows and not any(file.get_batch(i).num_rows for i in range(file.num_record_batches))
        check_columns(path, file.schema, no_rows)
        require_proportion(source, path, stream=kind == "Arrow stream")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise DataError(
                f"{path}: more Arrow files than may be open; raise the limit (ulimit -n), or convert into fewer shards"
            ) from error
        raise DataError(f"{path}: not a complete Arrow IPC file ({one_line(error)}); {_COPY_AGAIN}") from error
    return file


def _rewrite(read: str) -> str:
    return f"rewrite it: pyarrow.feather.write_feather({read}, NEW, compression='uncompressed')"


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


def check_columns(path: str | Path, schema: pa.Schema, no_rows: bool = False) -> None:
    """Refuse a file that lacks a column, or has one of another type.

    Args:
        no_rows: the file has none, so that its columns may have no type either, as in ViLT's last shard of a multiple
            of 100,000 images.

    Raises:
        DataError: naming file and column.
    """
    names = schema.names
    if missing := [column for column in REQUIRED_COLUMNS if column not in names]:
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns are {one_line(', '.join(names))}")
    if doubled := [column for column in COLUMNS if names.count(column) > 1]:
        raise DataError(f"{path}: the column {doubled[0]} occurs twice")
    texts = "; it must hold texts or lists of texts"
    for name, usable, wanted in (
        ("image", _is_image, ", not binary: it must hold the encoded image files"),
        ("image_id", _is_id, "; it must hold texts or whole numbers"),
        ("caption", _is_text_or_list, texts),
        ("long_caption", _is_text_or_list, texts),
    ):
        if name in names and not usable(kind := schema.field(name).type) and not (no_rows and types.is_null(kind)):
            raise DataError(f"{path}: column {name} is {one_line(kind)}{wanted}")


def _is_image(kind: pa.DataType) -> bool:
    if types.is_struct(kind):  # Hugging Face's Image
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    return is_bytes(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text_or_null(kind) or types.is_integer(plain_type(kind))


def _is_text_or_list(kind: pa.DataType) -> bool:
    return _is_text_or_null(kind.value_type if is_list(kind) else kind)


def _is_text_or_null(kind: pa.DataType) -> bool:
    return is_text(kind) or types.is_null(plain_type(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether the cells of a column are lists, however they are laid out."""
    return any(check(kind) for check in _LISTS)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether they are bytes."""
    return any(check(plain_type(kind)) for check in _BYTES)


def is_text(kind: pa.DataType) -> bool:
    """Whether they are texts."""
    return any(check(plain_type(kind)) for check in _TEXTS)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """That of a dictionary's values in place of its own."""
    return kind.value_type if types.is_dictionary(kind) else kind


def read_batch(file: ArrowFile, path: str | Path, number: int) -> pa.RecordBatch:
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

    Texts are taken as bytes: one that is not UTF-8 is one broken sample, not a broken file.

    Raises:
        DataError: naming file, batch and column.
    """
    for name in COLUMNS:
        if name in batch.schema.names:
            try:
                column = batch.column(name)
                column.validate()
                column.view(_as_bytes(column.type)).validate(full=True)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise _unreadable(path, number, f"column {name}: {error}") from error


def _unreadable(path: str | Path, number: int, why: object) -> DataError:
    return DataError(f"{path}: record batch {number} cannot be read ({one_line(why)}); {_COPY_AGAIN}")


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if types.is_fixed_size_list(kind):
        return pa.list_(_as_bytes(kind.value_type), kind.list_size)
    for is_kind, make in (
        (types.is_list, pa.list_), (types.is_large_list, pa.large_list), (types.is_list_view, pa.list_view),
        (types.is_large_list_view, pa.large_list_view),
    ):  # fmt: skip
        if is_kind(kind):
            return make(_as_bytes(kind.value_type))
    return _BYTES_OF.get(kind, kind)


def read_bytes(cell: pa.Scalar) -> pa.Buffer | None:
    """The bytes of an image's cell, whatever it is laid out as; None if it holds none.

    Raises:
        BrokenImage: it holds only the path of a file.
    """
    if isinstance(cell, pa.StructScalar):
        content = dict(cell.items()) if cell.is_valid else {}
        inner = content.get("bytes")
        data = None if inner is None else read_bytes(inner)
        if data is None and (path := content.get("path")) is not None and path.is_valid:
            raise BrokenImage(
                f"the image cell holds no bytes, only the path {one_line(path.as_py(), 100)!r}; with datasets, "
                "embed_table_storage puts the bytes in"
            )
        return data
    cell = decoded(cell)
    return cell.as_buffer() if cell is not None and cell.is_valid else None


def decoded(cell: pa.Scalar) -> pa.Scalar | None:
    """A dictionary's value in place of its index."""
    return cell.value if isinstance(cell, pa.DictionaryScalar) else cell


def read_text(cell: pa.Scalar, column: str, most: int) -> str:
    """The text of a cell. Raises BrokenSample if it is null, not UTF-8, or surely longer than `most` characters."""
    value = decoded(cell)
    buffer = value.as_buffer() if value is not None and value.is_valid else None
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
        texts += [row[name] for name in ("caption_id", "cocoid") if row.get(name)]
        crc = zlib.crc32(json.dumps(texts).encode(), zlib.crc32(row["image"] or b"", crc))
    return crc
