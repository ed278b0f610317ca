"""Rows of captions and image paths, whatever file they come from, with those that had to be left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from lexlip_data.errors import one_line
from lexlip_data.sources.skipped import Skipped

COCO_IDS = ("caption_id", "cocoid")
COLUMNS = ("title", "filepath", "image_id", "split", "long_caption", *COCO_IDS)


class Rows:
    """One row per caption.

    columns: large_string (rows,) each: title, filepath and any others of COLUMNS. Offsets have 64 bits because the
        texts of a table may be more than 2 GB together.
    numbers: int64 (rows,), of each row in its file, from 1; None: all rows in order.
    left_out: the bad rows.
    """

    def __init__(
        self,
        columns: Mapping[str, pa.Array | list[str]],
        numbers: np.ndarray | None = None,
        left_out: Iterable[Skipped] = (),
    ):
        self.columns = {
            name: pa.array(column, pa.large_string()) if isinstance(column, list) else column
            for name, column in columns.items()
        }
        self.numbers = np.arange(1, len(self.columns["title"]) + 1) if numbers is None else numbers
        self.left_out = list(left_out)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def image_ids(self) -> pa.Array:
        """Where the table has none, a path is its image's id."""
        return self.columns.get("image_id", self.columns["filepath"])

    def select(self, keep: np.ndarray) -> Rows:
        """The rows where `keep`, bool (rows,), is true; nothing is listed."""
        mask = pa.array(keep)
        return Rows({name: column.filter(mask) for name, column in self.columns.items()}, self.numbers[keep])

    def leave_out(self, bad: Mapping[int, tuple[str, str]]) -> Rows:
        """The rows but those of `bad`, row -> (kind, reason), which are added to `left_out`."""
        if not bad:
            return self
        keep = np.ones(len(self), dtype=bool)
        keep[list(bad)] = False
        rows = self.select(keep)
        rows.left_out = self.left_out + [self._skipped(i, kind, reason) for i, (kind, reason) in bad.items()]
        return rows

    def _skipped(self, i: int, kind: str, reason: str) -> Skipped:
        image_id = path = ""
        if kind != "malformed":  # else they may hold anything
            image_id, path = (one_line(column[i].as_py()) for column in (self.image_ids, self.columns["filepath"]))
        return Skipped(image_id, path, kind, f"row {self.numbers[i]}: {reason}")
