"""Parquet files, such as those of Hugging Face data sets -> a table of captioned images.

Opening reads the columns of captions and ids; an image's cell is read when it is wanted, best in ascending order, for
a row group can only be read from its begin. A cell holds an encoded image, a struct of `bytes` and `path`, or a path.

What a file may unpack to is bounded: so few rows are read at a time that even rows that each repeat all of their row
group stay within `_AT_ONCE`. What files say of themselves is looked at in a process of its own first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lexlip_data.children import python_command
from lexlip_data.errors import BrokenImage, DataError, one_line
from lexlip_data.sources.contained import ContainedTable, RowsOfFiles
from lexlip_data.sources.files import MAX_IMAGE_BYTES, read_image, real_roots
from lexlip_data.sources.ipc import is_bytes, is_list, is_text, plain_type, read_bytes
from lexlip_data.sources.kinds import kind_of_file
from lexlip_data.sources.patterns import find_files
from lexlip_data.sources.skipped import USUAL_RULES, Rules
from lexlip_data.sources.table import codes_of, first_of_each

_AT_ONCE = 1 << 28  # bytes
_ROWS = 1024
_MOST_VALUES = 1000  # values a row, on average over a row group
_LOOK = """
import json, sys
import pyarrow.parquet
for path in sys.stdin.read().split("\\n"):
    try:
        metadata = pyarrow.parquet.ParquetFile(path).metadata
        worst = {"values": 0, "rows": 0}
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            values = max([0, *(group.column(column).num_values for column in range(group.num_columns))])
            one = {"values": values, "rows": group.num_rows}
            worst = max(worst, one, key=lambda one: one["values"] - 1000 * one["rows"])
        print(json.dumps(worst), flush=True)
    except Exception as error:
        print(json.dumps({"error": " ".join(str(error).split())[:300]}), flush=True)
"""
_IDS = ("image_id", "id")
_END = ".parquet"


def read_parquet(
    patterns: str | Path | Sequence[str | Path], name: str, split: str, rules: Rules = USUAL_RULES,
    image: str = "image", caption: str = "caption", id: str | None = None, images: str | Path | None = None,
) -> ContainedTable:  # fmt: skip
    """The captioned images of Parquet files. Rows of one id are captions of one image, that of the first of them.

    Args:
        patterns: as for `find_files`.
        image: column of the images.
        caption: column of a text or of a list of texts; `sentences.raw` is the field `raw` of each in `sentences`.
        id: column of the ids, texts or whole numbers; None: image_id or id, or else FILE/ROW with rows from 0.
        images: the folder that paths start from and may not leave; None: that of the first file.
    Raises:
        DataError: a file is missing or cannot be read, a column is missing or of another kind, too much is bad.
    """
    files = find_files(patterns)
    check_metadata(files)
    collected = RowsOfFiles(files)
    top, *fields = caption.split(".")
    for file in files:
        label, opened = collected.name(file), _open(file)
        id_column = _check_columns(file, opened.schema_arrow, image, top, id)
        for first, batch in _batches(opened, file, [top, *([id_column] if id_column else [])]):
            collected.seen += batch.num_rows
            rows: list[tuple[str, str, str]] = []
            for number in range(batch.num_rows):
                row = first + number
                try:
                    found = batch.column(1)[number].as_py() if id_column else f"{label.removesuffix(_END)}/{row}"
                    if found is None:
                        raise ValueError("the id is null")
                    captions = _texts(batch.column(0)[number].as_py(), fields)
                except (UnicodeDecodeError, ValueError) as error:
                    why = f"not UTF-8 ({error.reason})" if isinstance(error, UnicodeDecodeError) else str(error)
                    collected.leave_out("", file, "malformed", f"row {row}: {why}")
                    continue
                if not captions:
                    collected.leave_out(str(found), file, "empty", f"row {row}: no caption in {one_line(caption, 80)}")
                rows += [(text, f"{label}#{row}", str(found)) for text in captions]
            collected.add(rows)
    rows_of_all = collected.rows(rules)
    first_rows = first_of_each(codes_of(rows_of_all.columns["image_id"]))
    rows_of_all.columns["filepath"] = rows_of_all.columns["filepath"].take(pa.array(first_rows))
    folder = str(files[0].parent if images is None else images)
    read = partial(read_cell, column=image, folder=folder, roots=real_roots(folder, rules.picture_roots))
    return ContainedTable(name, split, rows_of_all, files, rules, read)


def check_metadata(files: Sequence[Path]) -> None:
    """Let another process look at what the files say of themselves: over a hostile one, pyarrow ends its process.

    Raises:
        DataError: one is no Parquet file, or has many more values than rows: few bytes can stand for billions of nulls.
    """
    for file in files:
        require_parquet(file)
    done = subprocess.run(python_command(_LOOK), input="\n".join(map(str, files)), text=True, capture_output=True)
    lines = done.stdout.splitlines()
    for file, line in zip(files, lines):
        answer = json.loads(line)
        if "error" in answer:
            raise _unreadable(file, answer["error"])
        if answer["values"] > _MOST_VALUES * (answer["rows"] + _ROWS):
            raise DataError(f"{file}: {answer['values']:,} values in a column of {answer['rows']:,} rows: no captions")
    if len(lines) < len(files):
        told = done.stderr.strip().splitlines() or [f"reading it ended a process with {done.returncode}"]
        raise _unreadable(files[len(lines)], told[-1])


def require_parquet(file: str | Path) -> None:
    """Refuse another kind of file by its first bytes. Raises DataError."""
    kind = kind_of_file(file)
    if kind != "Parquet":
        raise DataError(f"{file}: {f'of kind {kind}' if kind else 'begins otherwise'}, not a Parquet file")


def _open(file: str | Path) -> pq.ParquetFile:
    require_parquet(file)
    try:
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: object, error: object) -> DataError:
    return DataError(f"{file}: not a whole Parquet file ({one_line(error)}); it may be a broken copy: copy it again")


def _check_columns(file: Path, schema: pa.Schema, image: str, caption: str, id: str | None) -> str | None:
    """Refuse what cannot be read; the column of the ids."""
    id_column = id or next((column for column in _IDS if column in schema.names), None)
    names = {"--image": image, "--caption": caption, "--id": id_column}
    for option, name in names.items():
        if name is not None and schema.names.count(name) != 1:
            columns = one_line(", ".join(schema.names))
            raise DataError(f"{file}: no column {name!r}; choose one with {option}, the columns are {columns}")
    kind = schema.field(image).type
    if is_list(kind):
        raise DataError(f"{file}: column {image} is {one_line(kind)}: lists of images; give one image a row")
    fields = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else None
    if not ("bytes" in fields if fields else is_bytes(kind) or is_text(kind)):
        raise DataError(f"{file}: column {image} is {one_line(kind)}; it must hold encoded images or their paths")
    if id_column and not (is_text(kind := schema.field(id_column).type) or pa.types.is_integer(plain_type(kind))):
        raise DataError(f"{file}: column {id_column} is {one_line(kind)}; ids are texts or whole numbers")
    return id_column


def _batches(
    opened: pq.ParquetFile, file: object, columns: list[str], groups: Sequence[int] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of some row groups or all, columns in the order given."""
    first = 0
    for group in range(opened.num_row_groups):
        metadata = opened.metadata.row_group(group)
        if groups is None or group in groups:
            start = first
            try:
                size = max(1, min(_ROWS, _AT_ONCE // max(1, metadata.total_byte_size)))
                for batch in opened.iter_batches(size, [group], columns, use_threads=False):
                    yield start, batch.select(columns)
                    start += batch.num_rows
            except (pa.ArrowException, OSError, ValueError) as error:
                raise _unreadable(file, error) from error
        first += metadata.num_rows


def _texts(value: object, fields: list[str]) -> list[str]:
    """The captions in a cell. Raises ValueError if it holds something else."""
    values = value if isinstance(value, list) else [value]
    for field in fields:
        values = [item.get(field) if isinstance(item, dict) else item for item in values]
        values = [inner for item in values for inner in (item if isinstance(item, list) else [item])]
    if any(not isinstance(text, str) for text in values if text is not None):
        raise ValueError("no text as caption")
    return [text for text in values if isinstance(text, str) and text.strip()]


def read_cell(locator: str, column: str, folder: str, roots: Sequence[str]) -> bytes:
    """The encoded image at a locator `x.parquet#ROW`.

    Args:
        column: of the images.
        folder: what a path in its place starts from.
        roots: folders that such a path must not leave.
    Raises:
        BrokenImage: there is none, or it is more than an image may have.
        DataError: the file cannot be read.
    """
    file, _, row = locator.rpartition("#")
    cell = _Cells(file, column).cell(int(row))
    fields = {"path" if is_text(cell.type) else "bytes": cell}
    if isinstance(cell, pa.StructScalar):
        fields = dict(cell.items()) if cell.is_valid else {}
    if "bytes" in fields and (data := read_bytes(fields["bytes"])) is not None:
        if data.size > MAX_IMAGE_BYTES:
            raise BrokenImage(f"{data.size:,} bytes; an image may have {MAX_IMAGE_BYTES:,}")
        return data.to_pybytes()
    path = _path(fields["path"]) if "path" in fields else None
    if path is None:
        raise BrokenImage("the image cell is null")
    return read_image(Path(folder, path), roots)


def _path(cell: pa.Scalar) -> str | None:
    try:
        path = cell.as_py()
    except UnicodeDecodeError as error:
        raise BrokenImage(f"the image's path is not UTF-8 ({error.reason})") from error
    if not isinstance(path, str | None):
        raise BrokenImage(f"the image's path is no text but of type {one_line(cell.type)}")
    return path


@lru_cache(maxsize=1)  # images come in ascending order, file after file
class _Cells:
    """One column of a file, its rows in ascending order; another order is right too, and slow."""

    def __init__(self, file: str, column: str):
        self._file, self._column, self._opened = file, column, _open(file)
        metadata = self._opened.metadata
        self._ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self._group = -1
        self._cursor: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._begin, self._batch = 0, None

    def cell(self, row: int) -> pa.Scalar:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group != self._group or row < self._begin:
            self._group = group
            self._cursor = _batches(self._opened, self._file, [self._column], [group])
            self._begin, self._batch = next(self._cursor, (row + 1, None))
        while self._batch is not None and row >= self._begin + self._batch.num_rows:
            self._begin, self._batch = next(self._cursor, (row + 1, None))
        if self._batch is None or row < self._begin:
            raise BrokenImage(f"the row group has no row {row}: {self._file} may be cut")
        return self._batch.column(0)[row - self._begin]
