"""A table file -> its columns as text, with the rows that cannot be read listed.

pyarrow parses it (some 30 MB/s, about three times the file's size in memory). Rows with a wrong number of columns or
with bytes that are not UTF-8 are left out and listed, as long as they are few: `Rules.check_rows`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.kinds import SUFFIXES, require_text
from lexlip_data.sources.rows import COLUMNS, Rows
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped

_BLOCK = 16 << 20  # bytes parsed at a time; a row must fit
_HEADER = 1 << 20  # bytes in which the header must end
_ONE_LINE = ("filepath", "image_id", "split")
_SWALLOWED = "swallowed by an open quote"
_SAMPLE = 10_000  # rows from which the usual suffixes of paths are known


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
    if missing := [column for column in ("title", "filepath") if column not in names]:
        hint = "; it looks like UTF-16: save it as UTF-8" if "\0" in header else ""
        raise DataError(f"{path}: no column {', '.join(missing)} in the header {one_line(header, 200)!r}{hint}")
    if doubled := [column for column in set(names) if names.count(column) > 1]:
        raise DataError(f"{path}: the column {doubled[0]!r} occurs twice in the header")
    # latin-1 gives every byte a character, so that pyarrow can name a bad row that is not UTF-8.
    parse = partial(_parse, path, separator, names, "utf-8" if _is_utf8(path) else "latin-1")
    swallowed = partial(_without_swallowed, separator=separator, names=names)
    rows = swallowed(parse(quoted=True)) if separator == "," else _either_way(parse, swallowed)
    rows.columns = {name: column for name, column in rows.columns.items() if name in COLUMNS}
    rules.check_left_out(rows.left_out, len(rows), path)
    return rows


def _read_header(path: Path) -> str:
    require_text(path, "a table of text with a header that names the columns title and filepath")
    with open(path, "rb") as file:
        line = file.readline(_HEADER)
    if len(line) == _HEADER:
        raise DataError(f"{path}: no line break in the first {_HEADER:,} bytes, so no header; is it a table?")
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def _is_utf8(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            while file.read(_BLOCK):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _either_way(parse: Callable[..., Rows], without_swallowed: Callable[[Rows], Rows]) -> Rows:
    """The way of reading quotes that leaves fewer rows out."""
    readings, failures = [], []
    # A quoted field may hold a TAB or a line break: only then is the number of columns off where quotes are text.
    for quoted in (False, True):
        try:
            rows = parse(quoted=quoted)
        except DataError as error:
            failures.append(error)
            continue
        readings.append(without_swallowed(rows) if quoted else _unquoted(rows))
        if not rows.left_out:
            break
    if not readings:
        raise failures[-1]
    return min(reversed(readings), key=lambda rows: sum(not item.reason.endswith(_SWALLOWED) for item in rows.left_out))


def _parse(path: Path, separator: str, names: list[str], encoding: str, quoted: bool) -> Rows:
    # All columns: an open quote in one that nobody reads swallows rows all the same.
    malformed: dict[int, str] = {}
    lost: list[Skipped] = []

    def leave_out(row: pacsv.InvalidRow) -> str:
        text = one_line(row.text.encode(encoding).decode(errors="replace"), 100)
        expected = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        open_quote = "a quote on it is not closed; " if "\n" in row.text.rstrip("\r\n") else ""
        malformed[row.number - 1] = f"{open_quote}malformed (Row #{row.number}: {expected}: {text})"
        lost.extend(_lost(row.number - 1, row.text))
        return "skip"

    try:
        parsed = pacsv.read_csv(
            path,
            # One thread, so that a bad row has a number. The header is read already: it may itself be quoted.
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK, skip_rows=1, column_names=names, encoding=encoding,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted,
                invalid_row_handler=leave_out,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False,
            ),
        )  # fmt: skip
    except (pa.ArrowException, OSError) as error:
        # "straddling": pyarrow's word for a row longer than a block, most often a quote that is never closed
        hint = f"; a row may have {_BLOCK >> 20} MB" if "straddling" in str(error) else ""
        raise DataError(f"{path}: malformed table ({one_line(error)}{hint})") from error
    columns = {name: parsed.column(name).cast(pa.large_string()).combine_chunks() for name in names}
    numbers = np.setdiff1d(np.arange(1, parsed.num_rows + len(malformed) + 1), list(malformed))
    left_out = [Skipped("", "", "malformed", f"row {number}: {reason}") for number, reason in malformed.items()] + lost
    bad: dict[int, tuple[str, str]] = {}
    for name in names if encoding == "latin-1" else ():
        texts = []
        for i, cell in enumerate(columns[name]):
            try:
                texts.append(cell.as_py().encode("latin-1").decode())
            except UnicodeDecodeError as error:
                texts.append("")
                bad[i] = "malformed", f"{name} is not UTF-8 text ({error.reason}); save the table as UTF-8"
        columns[name] = pa.array(texts, pa.large_string())
    return Rows(columns, numbers, left_out).leave_out(dict(sorted(bad.items())))


def _without_swallowed(rows: Rows, separator: str, names: list[str]) -> Rows:
    """Without the rows that hold others, which a quote that is not closed has swallowed.

    A field may have several lines, but no path or id has; and none of its lines is itself the rest of a row, a row or
    the beginning of one (which in a TAB-separated table is any line with a TAB).
    """
    bad: dict[int, tuple[str, str]] = {}
    lost: list[Skipped] = []
    suffixes: set[str] | None = None
    for name, column in rows.columns.items():
        for i in np.flatnonzero(np.asarray(pc.match_substring(column, "\n"))).tolist():
            text = column[i].as_py()
            suffixes = _suffixes(rows.columns["filepath"]) if suffixes is None else suffixes
            if name not in _ONE_LINE and not _holds_rows(text, separator, names, names.index(name), suffixes):
                continue
            reason = (
                f"the quote that opens {name} {one_line(text.splitlines()[0], 60)!r} is not closed on its row; double "
                "the quotes inside quoted fields, or quote nothing"
            )
            if i not in bad:
                bad[i] = "malformed", reason
                lost += _lost(rows.numbers[i], text)
    rows = rows.leave_out(dict(sorted(bad.items())))
    rows.left_out += lost
    return rows


def _lost(number: int, text: str) -> Iterator[Skipped]:
    """The lines that a row has swallowed: each counts as a row that is left out."""
    for line in range(1, text.rstrip("\n").count("\n") + 1):
        yield Skipped("", "", "malformed", f"row {number}: line {line} after it, {_SWALLOWED}")


def _holds_rows(text: str, separator: str, names: list[str], place: int, suffixes: set[str]) -> bool:
    if separator == "\t":
        return "\t" in text
    path, columns = names.index("filepath"), len(names)
    first, *others = text.split("\n")
    if path > place and _looks_like_path(_cells(first), path - place, {columns - place}, suffixes):
        return True
    *rows, last = others
    return any(_looks_like_path(_cells(row), path, {columns}, suffixes) for row in rows) or _looks_like_path(
        _cells(last), path, set(range(path + 1, columns + 1)), suffixes
    )


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r").replace("\0", " ")]), [])
    except csv.Error:
        return []


def _looks_like_path(cells: list[str], place: int, lengths: set[int], suffixes: set[str]) -> bool:
    """Whether a row of so many cells has, at its place, a path with a suffix that the table's paths have."""
    if len(cells) not in lengths:
        return False
    suffix = os.path.splitext(cells[place])[1].lower()
    return suffix in suffixes and (suffix != "" or (cells[place] != "" and not re.search(r"\s", cells[place])))


def _suffixes(paths: pa.Array) -> set[str]:
    usual = {os.path.splitext(path)[1].lower() for path in paths[:_SAMPLE].to_pylist() if "\n" not in path}
    return {*SUFFIXES, *(suffix for suffix in usual if not re.search(r"\s", suffix))}


def _unquoted(rows: Rows) -> Rows:
    for name, column in rows.columns.items():
        quoted = pc.match_substring_regex(column, r'(?s)^"(?:[^"]|"")*"$')
        if pc.any(quoted).as_py():
            inner = pc.replace_substring(pc.utf8_slice_codeunits(column, 1, -1), '""', '"')
            rows.columns[name] = pc.if_else(quoted, inner, column)
    return rows
