"""Captioned pictures as a table of (title, filepath, image_id) rows: the TSV layout read without conversion.

The whole table is parsed by pyarrow into string buffers (memory about three times its size on disk; some 30 MB/s) and
grouped by picture with numpy; pictures are opened from disk one by one. Forked workers share the buffers; a
spawned one parses the file again.
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from lexlip_data.errors import BrokenImage, DataError

_BLOCK = 16 << 20  # bytes parsed at a time; a row must fit


class CaptionTable:
    """Rows grouped to pictures in the order of their first row. See `lexlip_data.source.Source` for the methods.

    Rows with an empty title or file path are left out and counted in `empty_rows`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        titles: pa.Array | list[str],
        paths: pa.Array | list[str],
        image_ids: pa.Array | list[str] | None = None,
        long_titles: pa.Array | list[str] | None = None,
        folder: str | Path = "",
        max_images: int | None = None,
        origin: str = "",
    ):
        """
        Args:
            titles, paths, image_ids, long_titles: one entry per caption. Without ids the path is the id.
            folder: what relative paths start from.
            max_images: keep the first so many pictures.
            origin: file the rows come from, for messages.
        Raises:
            DataError: one id stands for two different files.
        """
        self.name, self.split, self.folder, self.origin = name, split, Path(folder), origin or "rows"
        self.max_images = max_images
        titles, paths = _strings(titles), _strings(paths)
        ids = paths if image_ids is None else _strings(image_ids)
        has_title = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(titles)), 0)
        keep = pc.and_(has_title, pc.greater(pc.utf8_length(paths), 0))
        self.empty_rows = len(titles) - int(pc.sum(keep).as_py() or 0)
        self._lines = np.flatnonzero(np.asarray(keep))
        long_column = None if long_titles is None else _strings(long_titles)
        if self.empty_rows:
            titles, paths, ids = (column.filter(keep) for column in (titles, paths, ids))
            long_column = None if long_column is None else long_column.filter(keep)
        self._titles, self._paths, self._ids, self._longs = titles, paths, ids, long_column
        self._group()

    def _group(self) -> None:
        codes = np.asarray(self._ids.dictionary_encode().indices).astype(np.int64)
        self._rows = np.argsort(codes, kind="stable")
        counts = np.bincount(codes) if len(codes) else np.zeros(0, dtype=np.int64)
        first = self._rows[np.cumsum(counts) - counts] if len(codes) else np.zeros(0, dtype=np.int64)
        path_codes = np.asarray(self._paths.dictionary_encode().indices).astype(np.int64)
        clash = np.flatnonzero(path_codes != path_codes[first][codes]) if len(codes) else []
        if len(clash):
            row = int(clash[0])
            one, two = self._paths[int(first[codes[row]])].as_py(), self._paths[row].as_py()
            raise DataError(
                f"{self.origin}, row {int(self._lines[row]) + 1}: image_id {self._ids[row].as_py()!r} stands for "
                f"two files, {one} and {two}; give every picture its own image_id"
            )
        if self.max_images is not None:
            counts = counts[: self.max_images]
        self._counts = counts.astype(np.int64)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def caption_counts(self) -> np.ndarray:
        return self._counts

    def _rows_of(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} {self.split}: picture {i} of {len(self)}")
        end = int(self._ends[i])
        return self._rows[end - int(self._counts[i]) : end]

    def image_id(self, i: int) -> str:
        return self._ids[int(self._rows_of(i)[0])].as_py()

    def path(self, i: int) -> Path:
        """The picture's file; relative paths start from the table's folder."""
        return self.folder / self._paths[int(self._rows_of(i)[0])].as_py()

    def image_bytes(self, i: int) -> bytes:
        path = self.path(i)
        try:
            return path.read_bytes()
        except OSError as error:
            raise BrokenImage(f"{path} cannot be read ({error.strerror or error})") from error

    def captions(self, i: int) -> list[str]:
        return [self._titles[int(row)].as_py() for row in self._rows_of(i)]

    def long_captions(self, i: int) -> list[str]:
        if self._longs is None:
            return []
        texts = (self._longs[int(row)].as_py() for row in self._rows_of(i))
        return list(dict.fromkeys(text for text in texts if text))  # one text repeated on every row counts once

    @property
    def has_long_captions(self) -> bool:
        return self._longs is not None

    def where(self, i: int) -> str:
        return f"{self.origin}, row {int(self._lines[int(self._rows_of(i)[0])]) + 1}, file {self.path(i)}"

    def fingerprint(self) -> str:
        """A hash of every id, path and caption that this table hands out."""
        rows = pa.array(self._rows[: int(self._ends[-1]) if len(self) else 0])
        digest = hashlib.blake2b(digest_size=16)
        for column in (self._ids, self._paths, self._titles, self._longs):
            if column is None:
                continue
            column = column.take(rows)
            digest.update(np.asarray(pc.binary_length(column)).tobytes())
            start = column.buffers()[2]
            digest.update(b"" if start is None else start)
        return digest.hexdigest()


class TsvSource(CaptionTable):
    """A table file as a source. Pickling keeps the path: a spawned worker parses the file again."""

    def __init__(self, name: str, split: str, path: str | Path, max_images: int | None = None):
        """
        Args:
            path: TAB- or comma-separated text with the columns title, filepath and optionally image_id and
                long_caption; file paths are relative to the table's folder.
        Raises:
            DataError: the file is absent or malformed, or a column is missing.
        """
        self.table_path = Path(path)
        columns = read_columns(path)
        super().__init__(
            name, split, columns["title"], columns["filepath"], columns.get("image_id"), columns.get("long_caption"),
            folder=self.table_path.parent, max_images=max_images, origin=str(path),
        )  # fmt: skip

    def __reduce__(self) -> tuple:
        return TsvSource, (self.name, self.split, str(self.table_path), self.max_images)


def read_columns(path: str | Path) -> dict[str, pa.Array]:
    """The columns title, filepath and, where present, image_id, split and long_caption, as strings.

    The separator is a TAB if the header has one, whatever the file's ending, else a comma. Quotes in a TAB-separated
    file are read both ways people write them: a field that was quoted (`"a ""b"" c"`, as pandas does) is unquoted, any
    other quote is part of the text.
    Raises:
        DataError: the file is absent, empty, not UTF-8 or malformed, or title or filepath is missing.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline().rstrip("\r\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    separator = "\t" if "\t" in header else ","
    names = next(iter(_plain_rows(header, separator)), [])
    missing = [column for column in ("title", "filepath") if column not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)} in the header {header[:200]!r}")
    doubled = [column for column in set(names) if names.count(column) > 1]
    if doubled:
        raise DataError(f"{path}: the column {doubled[0]!r} occurs twice in the header")
    wanted = [c for c in ("title", "filepath", "image_id", "split", "long_caption") if c in names]
    if separator == ",":
        table = _parse(path, separator, names, wanted, quoted=True)
        return {column: _strings(table.column(column)) for column in wanted}
    try:
        table = _parse(path, separator, names, wanted, quoted=False)
        return {column: _unquote(_strings(table.column(column))) for column in wanted}
    except _Malformed:
        pass  # a quoted field may hold a TAB or a line break: only then is the number of columns off
    table = _parse(path, separator, names, wanted, quoted=True)
    columns = {column: _strings(table.column(column)) for column in wanted}
    for column, values in columns.items():
        swallowed = pc.and_(pc.match_substring(values, "\t"), pc.match_substring(values, "\n"))
        at = np.flatnonzero(np.asarray(swallowed))
        if len(at):
            start = values[int(at[0])].as_py()[:60]
            raise DataError(
                f"{path}, row {int(at[0]) + 1}: the quote that opens {column} {start!r} is not closed "
                "on its row; double the quotes inside quoted fields, or quote nothing"
            )
    return columns


class _Malformed(DataError):
    pass


def _parse(path: Path, separator: str, names: list[str], wanted: list[str], quoted: bool) -> pa.Table:
    try:
        return pacsv.read_csv(
            path,
            # One thread, so that an error names its row. The header is read already: its own quotes may be on.
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK, skip_rows=1, column_names=names),
            parse_options=pacsv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted,
                column_types={column: pa.string() for column in wanted},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _Malformed(f"{path}: malformed table ({str(error)[:300]})") from error


def _plain_rows(header: str, separator: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(header), delimiter=separator))


def _unquote(values: pa.Array) -> pa.Array:
    quoted = pc.match_substring_regex(values, r'(?s)^"(?:[^"]|"")*"$')
    if not pc.any(quoted).as_py():
        return values
    inner = pc.replace_substring(pc.utf8_slice_codeunits(values, 1, -1), '""', '"')
    return pc.if_else(quoted, inner, values)


def _strings(values: pa.Array | pa.ChunkedArray | list[str]) -> pa.Array:
    """One contiguous array with 64-bit offsets: a table's texts may be more than 2 GB together."""
    if isinstance(values, list):
        values = pa.array(values, pa.large_string())
    values = pc.fill_null(values.cast(pa.large_string()), "")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
