"""A table file -> its columns as text, with the rows that are no rows listed.

pyarrow parses it (some 30 MB/s, about three times the file's size in memory). Rows with a wrong number of columns or
with bytes that are not UTF-8 are left out and listed, as long as they are few: `Rules.check_rows`.
"""

from __future__ import annotations

import codecs
import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import require_file
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped

COLUMNS = ("title", "filepath", "image_id", "split", "long_caption")
_BLOCK = 16 << 20  # bytes parsed at a time; a row must fit
_HEADER = 1 << 20  # bytes in which the header must end


@dataclass
class Rows:
    """The good rows of a table.

    columns: large_string (rows,) each; title, filepath and those of COLUMNS that are there.
    numbers: int64 (rows,), of each row in the file from 1, the header not counted.
    bad: the other rows.
    """

    columns: dict[str, pa.Array]
    numbers: np.ndarray
    bad: list[Skipped] = field(default_factory=list)


def read_columns(path: str | Path, rules: Rules = USUAL_RULES) -> Rows:
    """The columns title, filepath and, where present, image_id, split and long_caption, as strings.

    The separator is a TAB if the header has one, whatever the file's ending, else a comma. Quotes in a TAB-separated
    file are read both ways people write them: a field that was quoted (`"a ""b"" c"`, as pandas does) is unquoted, any
    other quote is part of the text.
    Raises:
        DataError: the file is absent, empty or not UTF-8, title or filepath is missing, or too many rows are malformed.
    """
    path = Path(path)
    header = _read_header(path)
    separator = "\t" if "\t" in header else ","
    try:
        readable = header.replace("\0", "\ufffd")  # Python 3.10's csv refuses NUL
        names = next(csv.reader([readable], delimiter=separator), [])
    except csv.Error as error:  # among others a lone \r, once the line end of some systems
        raise DataError(f"{path}: the header cannot be read; lines must end in \\n or \\r\\n ({error})") from error
    missing = [column for column in ("title", "filepath") if column not in names]
    if missing:
        hint = "; it looks like UTF-16: save it as UTF-8" if "\0" in header else ""
        raise DataError(f"{path}: no column {', '.join(missing)} in the header {one_line(header, 200)!r}{hint}")
    doubled = [column for column in set(names) if names.count(column) > 1]
    if doubled:
        raise DataError(f"{path}: the column {doubled[0]!r} occurs twice in the header")
    table = _Table(path, separator, names, "utf-8" if _is_utf8(path) else "latin-1")
    rows = _parse(table, quoted=True) if separator == "," else _either_way(table)
    example = rows.bad[0].reason if rows.bad else ""
    rules.check_rows(len(rows.bad), len(rows.numbers) + len(rows.bad), str(path), example)
    return rows


def _read_header(path: Path) -> str:
    require_file(path)
    with open(path, "rb") as file:
        line = file.readline(_HEADER)
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
    if len(line) == _HEADER:
        raise DataError(f"{path}: no line break in the first {_HEADER:,} bytes, so no header; is it a table?")
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


@dataclass(frozen=True)
class _Table:
    path: Path
    separator: str
    names: list[str]
    # latin-1 gives every byte a character, so that pyarrow can name a bad row that is not UTF-8.
    encoding: str


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        try:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _either_way(table: _Table) -> Rows:
    """The reading of quotes that leaves fewer rows over."""
    try:
        plain = _parse(table, quoted=False)
    except _Malformed:
        plain = None
    if plain is not None and not plain.bad:
        return _unquoted(plain)
    # A quoted field may hold a TAB or a line break: only then is the number of columns off.
    try:
        quoted = _without_swallowed(_parse(table, quoted=True))
    except _Malformed:
        if plain is None:
            raise
        return _unquoted(plain)
    return quoted if plain is None or len(quoted.bad) <= len(plain.bad) else _unquoted(plain)


class _Malformed(DataError):
    pass


def _parse(table: _Table, quoted: bool) -> Rows:
    wanted = [column for column in COLUMNS if column in table.names]
    bad: list[tuple[int, str]] = []

    def leave_out(row: pacsv.InvalidRow) -> str:
        text = row.text.encode(table.encoding).decode(errors="replace")
        expected = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        bad.append((row.number - 1, f"malformed (Row #{row.number}: {expected}: {one_line(text, 100)})"))
        return "skip"

    try:
        parsed = pacsv.read_csv(
            table.path,
            # One thread, so that a bad row has a number. The header is read already: its own quotes may be on.
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK, skip_rows=1, column_names=table.names, encoding=table.encoding,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=table.separator, quote_char='"' if quoted else False, newlines_in_values=quoted,
                invalid_row_handler=leave_out,
            ),
            # Bytes, because one row that is not UTF-8 would end the parse.
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted, column_types={column: pa.binary() for column in wanted},
                strings_can_be_null=False,
            ),
        )  # fmt: skip
    except (pa.ArrowException, OSError) as error:
        # "straddling": pyarrow's word for a row longer than a block, most often a quote that is never closed
        hint = f"; a row may have {_BLOCK >> 20} MB" if "straddling" in str(error) else ""
        raise _Malformed(f"{table.path}: malformed table ({one_line(error)}{hint})") from error
    total = parsed.num_rows + len(bad)
    numbers = np.setdiff1d(np.arange(1, total + 1), [number for number, _ in bad])
    rows = Rows(
        {column: _binary(parsed.column(column), table.encoding) for column in wanted}, numbers,
        [Skipped("", "", "malformed", f"row {number}: {reason}") for number, reason in bad],
    )  # fmt: skip
    return _decoded(rows)


def _binary(column: pa.ChunkedArray, encoding: str) -> pa.Array:
    """The file's bytes, one contiguous array with 64-bit offsets: a table's texts may be more than 2 GB together."""
    if encoding == "utf-8":
        return column.cast(pa.large_binary()).combine_chunks()
    return pa.array((cell.as_py().decode().encode(encoding) for cell in column), pa.large_binary())


def _decoded(rows: Rows) -> Rows:
    """Bytes -> text; rows that are not UTF-8 become bad ones."""
    wrong: dict[int, str] = {}
    for name, column in rows.columns.items():
        try:
            column.cast(pa.large_string())
        except pa.ArrowInvalid:
            for i, cell in enumerate(column):
                try:
                    cell.as_py().decode()
                except UnicodeDecodeError as error:
                    wrong[i] = f"{name} is not UTF-8 text ({error.reason}); save the table as UTF-8"
    reasons = [Skipped("", "", "malformed", f"row {rows.numbers[i]}: {text}") for i, text in sorted(wrong.items())]
    rows = _left_out(rows, np.fromiter(wrong, dtype=np.int64, count=len(wrong)), reasons)
    rows.columns = {name: column.cast(pa.large_string()) for name, column in rows.columns.items()}
    return rows


def _left_out(rows: Rows, at: np.ndarray, reasons: list[Skipped]) -> Rows:
    if not len(at):
        return rows
    keep = np.ones(len(rows.numbers), dtype=bool)
    keep[at] = False
    columns = {name: column.filter(pa.array(keep)) for name, column in rows.columns.items()}
    return Rows(columns, rows.numbers[keep], rows.bad + reasons)


def _without_swallowed(rows: Rows) -> Rows:
    """A field with TAB and line break is a row, or several, that an unclosed quote has swallowed."""
    found: dict[int, Skipped] = {}
    for column, values in rows.columns.items():
        swallowed = pc.and_(pc.match_substring(values, "\t"), pc.match_substring(values, "\n"))
        for i in np.flatnonzero(np.asarray(swallowed)).tolist():
            start = one_line(values[i].as_py(), 60)
            reason = (
                f"row {rows.numbers[i]}: the quote that opens {column} {start!r} is not closed on its row; double the "
                "quotes inside quoted fields, or quote nothing"
            )
            found.setdefault(i, Skipped("", "", "malformed", reason))
    return _left_out(rows, np.array(sorted(found), dtype=np.int64), [found[i] for i in sorted(found)])


def _unquoted(rows: Rows) -> Rows:
    rows.columns = {name: _unquote(column) for name, column in rows.columns.items()}
    return rows


def _unquote(values: pa.Array) -> pa.Array:
    quoted = pc.match_substring_regex(values, r'(?s)^"(?:[^"]|"")*"$')
    if not pc.any(quoted).as_py():
        return values
    inner = pc.replace_substring(pc.utf8_slice_codeunits(values, 1, -1), '""', '"')
    return pc.if_else(quoted, inner, values)
