"""Captioned images that lie inside larger files, tar shards or Parquet: a table whose paths say where in which file.

Such a path, a locator, is the larger file's name, `#`, and the place in it. Names that the larger file holds itself
are never paths: nothing is unpacked to the disk, and they lead nowhere.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.rows import Rows
from lexlip_data.sources.skipped import Rules, Skipped
from lexlip_data.sources.table import CaptionTable

_COLUMNS = ("title", "filepath", "image_id")


class ContainedTable(CaptionTable):
    """A table of images inside `files`; `read` gives the encoded bytes at a locator, and travels to other processes."""

    def __init__(
        self, name: str, split: str, rows: Rows, files: Sequence[Path], rules: Rules, read: Callable[[str], bytes]
    ):
        self._sizes = [os.path.getsize(file) for file in files]
        origin = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        super().__init__(name, split, rows, common_folder(files), origin, rules, roots=())
        self.read = read

    def fingerprint(self) -> str:
        """As that of every table; and the larger files' sizes, by which others under their names are noticed."""
        return hashlib.blake2b(f"{super().fingerprint()}{self._sizes}".encode(), digest_size=16).hexdigest()


class RowsOfFiles:
    """Collects rows of many files. Texts go into Arrow buffers, which take a third of what Python's would.

    left_out: what is no row; of kind `empty` as much as of images may be, of others as little as of rows.
    seen: how many samples there were.
    """

    def __init__(self, files: Sequence[Path]):
        self._files, self._folder, self.seen = files, common_folder(files), 0
        self._parts: dict[str, list[pa.Array]] = {column: [] for column in _COLUMNS}
        self.left_out: list[Skipped] = []

    def name(self, file: Path) -> str:
        """What a file is called in locators, which stay the same where the whole folder moves."""
        return os.path.relpath(os.path.abspath(file), self._folder)

    def add(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Some rows, one per caption: caption, locator, id."""
        for column, texts in zip(_COLUMNS, zip(*rows)):
            self._parts[column].append(pa.array(texts, pa.large_string()))

    def leave_out(self, id: str, file: Path, kind: str, reason: str) -> None:
        """List a sample of a file with the reason."""
        self.left_out.append(Skipped(one_line(id), str(file), kind, f"{file}, {reason}"))

    def rows(self, rules: Rules) -> Rows:
        """All of them, in order.

        Raises:
            DataError: none is there, or too many were left out.
        """
        rows = Rows({column: pa.chunked_array(parts, pa.large_string()).combine_chunks() for column, parts in
                     self._parts.items()}, left_out=self.left_out)  # fmt: skip
        empty = [item for item in self.left_out if item.kind == "empty"]
        others = [item for item in self.left_out if item.kind != "empty"]
        n_rows = len(rows) + len(others)
        for bad, total, most in (
            (others, f"{n_rows:,} rows", int(rules.max_bad_share * n_rows)),
            (empty, f"{self.seen:,} samples", rules.allowed(self.seen)),
        ):
            if len(bad) > most:
                raise DataError(
                    f"{bad[0].reason} ({len(bad):,} of {total} cannot be used, more than the {most:,} that "
                    f"max_bad_share {rules.max_bad_share:g} allows)"
                )
        if len(rows) == 0:
            raise DataError(self.left_out[0].reason if self.left_out else f"{self._files[0]}: no sample in it")
        return rows


def common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that all of some files are in."""
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))
