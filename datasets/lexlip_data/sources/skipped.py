"""What is left out of a data set, and how much of it is too much.

A list of what was left out is a TAB-separated file beside the Arrow files: `{prefix}_skipped.tsv` of a whole split,
`{prefix}_{k}_skipped.tsv` of a shard that was converted alone, so that machines do not write into one another's.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lexlip_data.errors import DataError, one_line

MAX_BAD_SHARE = 0.01
SMALL = 10  # so many bad pictures, or a third of a smaller set, are never too many

COLUMNS = ("image_id", "filepath", "kind", "reason")
# Rows of the table; all other kinds are of pictures: missing, broken, outside, unknown (by an earlier run).
ROW_KINDS = ("malformed", "empty", "long", "repeated")


@dataclass(frozen=True)
class Skipped:
    """A row or picture that is not in the files, and why. `path` is as the table has it."""

    image_id: str
    path: str
    kind: str
    reason: str

    def __str__(self) -> str:
        where = one_line(self.path or self.image_id)
        return f"{where}: {one_line(self.reason)}" if where else one_line(self.reason)


@dataclass(frozen=True)
class Rules:
    """What is accepted of data that others made.

    max_bad_share: of rows, and of pictures, that may be left out.
    picture_roots: folders besides the data root into which paths and links may lead.
    """

    max_bad_share: float = MAX_BAD_SHARE
    picture_roots: Sequence[str] = ()

    def __post_init__(self) -> None:
        share = self.max_bad_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise DataError(f"max_bad_share {share!r}: must be a share between 0 and 1, such as {MAX_BAD_SHARE}")
        roots = self.picture_roots
        if isinstance(roots, str) or not all(isinstance(root, (str, Path)) for root in roots):
            raise DataError(f"picture_roots {roots!r}: give a list of folders")

    def allowed(self, total: int) -> int:
        """How many of `total` pictures or captions may be bad."""
        return max(int(self.max_bad_share * total), min(SMALL, total // 3))

    def check_rows(self, bad: int, total: int, origin: str, example: str) -> None:
        """Refuse a table whose own rows are wrong. Here nothing is too small to count: a row can be repaired.

        Raises:
            DataError: naming `origin` and the example.
        """
        if bad > self.max_bad_share * total:
            raise DataError(
                f"{origin}, {one_line(example)} ({bad:,} of {total:,} rows cannot be used, more than a share of "
                f"{self.max_bad_share:g})"
            )


USUAL_RULES = Rules()


def list_path(out: Path, prefix: str, shard: int | None = None) -> Path:
    """Where the skipped of a split, or of one shard that is converted alone, are listed."""
    return out / (f"{prefix}_skipped.tsv" if shard is None else f"{prefix}_{shard}_skipped.tsv")


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
        with open(partial, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(COLUMNS)
            rows.writerow(_cells(first))
            rows.writerows(_cells(item) for item in skipped)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _cells(item: Skipped) -> list[str]:
    # Cut, or the list of captions that are too long would be as long as they are.
    return [one_line(item.image_id, 1000), one_line(item.path, 4096), item.kind, one_line(item.reason, 1000)]


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
            raise DataError(f"{path}: not a list of skipped pictures ({error!r}); remove it") from error
