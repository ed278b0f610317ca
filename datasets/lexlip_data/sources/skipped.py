"""What is left out of a data set, and how much of it is too much.

A list of what was left out is a TAB-separated file beside the Arrow files: `{prefix}_skipped.tsv` of a whole split,
`{prefix}_{k}_skipped.tsv` of a shard that was converted alone, so that machines do not write into each other's files.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import writing

MAX_BAD_SHARE = 0.01
SMALL = 10  # so many bad images, or a third of a smaller set, are never too many

COLUMNS = ("image_id", "filepath", "kind", "reason")
# Rows of the table; all other kinds are of images: missing, broken, outside, unknown (by an earlier conversion).
ROW_KINDS = ("malformed", "empty", "long", "repeated")


@dataclass(frozen=True)
class Skipped:
    """A row or image that is not in the files, and why. `path` is as the table has it."""

    image_id: str
    path: str
    kind: str
    reason: str

    def __str__(self) -> str:
        where, reason = one_line(self.path or self.image_id), one_line(self.reason)
        return reason if reason.startswith(where) else f"{where}: {reason}"


@dataclass(frozen=True)
class Rules:
    """What is accepted of data that others made.

    max_bad_share: the fraction of the rows, and of the images, that may be left out.
    picture_roots: folders besides the data root into which paths and links may lead.
    """

    max_bad_share: float = MAX_BAD_SHARE
    picture_roots: Sequence[str] = ()

    def __post_init__(self) -> None:
        fraction, roots = self.max_bad_share, self.picture_roots
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise DataError(f"max_bad_share {fraction!r}: must be a fraction from 0 to 1, such as {MAX_BAD_SHARE}")
        if isinstance(roots, str) or not all(isinstance(root, (str, Path)) for root in roots):
            raise DataError(f"picture_roots {roots!r}: give a list of folders")

    def allowed(self, total: int) -> int:
        """How many of `total` images or captions may be bad."""
        return max(int(self.max_bad_share * total), min(SMALL, total // 3))

    def check_rows(self, bad: int, total: int, origin: object, example: str) -> None:
        """Refuse a table of which too many rows are bad. No table is too small for this: rows can be repaired.

        Raises:
            DataError: naming `origin` and the example.
        """
        if bad > self.max_bad_share * total:
            raise DataError(
                f"{origin}, {one_line(example)} ({bad:,} of {total:,} rows cannot be used, more than a fraction of "
                f"{self.max_bad_share:g})"
            )

    def check_left_out(self, bad: Sequence[Skipped], good: int, origin: object, note: str = "") -> None:
        """`check_rows` for rows that are listed; the first is the example, `note` goes with it."""
        self.check_rows(len(bad), good + len(bad), origin, bad[0].reason + note if bad else "")


USUAL_RULES = Rules()


def list_paths(out: Path, prefix: str) -> list[Path]:
    """All lists of a split that are there."""
    pattern = re.compile(re.escape(prefix) + r"(_\d+)?_skipped\.tsv")
    return sorted(path for path in out.iterdir() if pattern.fullmatch(path.name))


def write_list(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write a list, or remove it where nothing was left out."""
    skipped = iter(skipped)
    first = next(skipped, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path), open(partial, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(COLUMNS)
            for item in chain([first], skipped):
                # Cut, or the list of captions that are too long would be as long as they are.
                texts = (item.image_id, 1000), (item.path, 4096), (item.kind, 100), (item.reason, 1000)
                rows.writerow([one_line(text, most) for text, most in texts])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_lists(out: Path, prefix: str) -> Iterator[Skipped]:
    """Everything listed of a split. Raises DataError where a list is not readable."""
    for path in list_paths(out, prefix):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file, delimiter="\t"):
                    cells = [row[column] for column in COLUMNS]
                    if None in cells:
                        raise ValueError(f"a row of {len(cells) - cells.count(None)} columns")
                    yield Skipped(*cells)
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise DataError(f"{path}: not a list of skipped images ({error!r}); remove it") from error
