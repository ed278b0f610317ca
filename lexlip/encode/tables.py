"""The images or the captions of caption files: Arrow files, and tables, tar shards and Parquet without conversion.

Rows that repeat an image_id are one image, the first of them, as in evaluation. A caption's id is
`{image_id}#{number}`, numbered from 0 among the captions of its image in the order of the file.

Costs 24 bytes per image for Arrow files; a table is held in memory, some three times its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lexlip.encode.corpus import Images, Texts, mark
from lexlip_data.errors import BrokenSample, DataError, one_line
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.source import Source, hash_id
from lexlip_data.sources.table import CaptionTable, TsvSource


def read_arrow(paths: Sequence[str | Path], what: str = "images") -> Images | Texts:
    """The images or the captions of Arrow files, in the order given.

    Args:
        what: "images" or "texts".

    Raises:
        DataError: a file is absent, damaged, or lacks a column.
    """
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return _corpus(ArrowSource("corpus", "encode", paths), what, f"{paths[0]}{more}", [])


def read_tsv(
    path: str | Path, what: str = "images", rules: Rules = USUAL_RULES, images: str | Path | None = None
) -> Images | Texts:
    """The images or the captions of a table with the columns title, filepath, and optionally image_id.

    Args:
        what: "images" or "texts".
        rules: how many rows may be bad, and where images may lie besides the table's folder.
        images: what file paths are relative to; None: the table's folder.

    Raises:
        DataError: the file is absent or malformed, or too many rows are bad.
    """
    return of_table(TsvSource("corpus", "encode", path, rules=rules, images=images), what)


def of_table(table: CaptionTable, what: str = "images") -> Images | Texts:
    """The images or the captions of tar shards or Parquet files, as `read_tars` and `read_parquet` give them."""
    return _corpus(table, what, table.origin, table.left_out)


def _corpus(source: Source, what: str, origin: str, left_out: list[Skipped]) -> Images | Texts:
    kinds: dict[str, Callable[..., Images | Texts]] = {"images": SourceImages, "texts": SourceCaptions}
    if what not in kinds:
        raise DataError(f"what={what!r}: it must be one of {', '.join(kinds)}")
    return kinds[what](source, origin, left_out)


class _OfSource:
    ids = "string"

    def __init__(self, source: Source, origin: str, left_out: list[Skipped]):
        self.source, self.origin, self.left_out = source, origin, left_out
        self.notes: list[str] = []
        hashes = (hash_id(source.name, self._row_name(row)) for row in range(len(source)))
        self._hashes = np.fromiter(hashes, np.int64, len(source))

    def _row_name(self, row: int) -> str:
        try:
            return self.source.image_id(row)
        except BrokenSample:
            return self.source.where(row)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._hashes.tobytes(), digest_size=16)
        digest.update(np.ascontiguousarray(self.source.caption_counts).tobytes())
        return digest.hexdigest()


class SourceImages(_OfSource):
    """Each image of a source once. See `lexlip.encode.corpus.Images` for the methods."""

    what = "images"

    def __init__(self, source: Source, origin: str, left_out: list[Skipped]):
        super().__init__(source, origin, left_out)
        self._first_rows = np.sort(np.unique(self._hashes, return_index=True)[1])

    def __len__(self) -> int:
        return len(self._first_rows)

    def marks(self) -> np.ndarray:
        marks = [mark(self.name(i), self._content(int(row))) for i, row in enumerate(self._first_rows)]
        return np.array(marks, np.uint32).reshape(-1, 2)

    def _content(self, row: int) -> str:
        if isinstance(self.source, CaptionTable):  # in tar shards and Parquet, with the place
            return str(self.source.path(row))
        try:
            return str(len(self.source.image_bytes(row)))  # which reads none of them
        except BrokenSample as error:
            return str(error)

    def image(self, i: int) -> tuple[str, bytes | memoryview]:
        row = int(self._first_rows[i])
        return self.source.image_id(row), self.source.image_bytes(row)

    def name(self, i: int) -> str:
        return self._row_name(int(self._first_rows[i]))


class SourceCaptions(_OfSource):
    """Each caption of a source. See `lexlip.encode.corpus.Texts` for the methods."""

    what = "texts"

    def __init__(self, source: Source, origin: str, left_out: list[Skipped]):
        super().__init__(source, origin, left_out)
        counts = source.caption_counts
        self._ends = np.cumsum(counts, dtype=np.int64)
        # The captions of an image that several rows hold are numbered through.
        order = np.argsort(self._hashes, kind="stable")
        before = np.cumsum(counts[order], dtype=np.int64) - counts[order]
        begins = np.diff(self._hashes[order], prepend=self._hashes[order[:1]] - 1) != 0
        self._first_number = np.empty_like(before)
        self._first_number[order] = before - np.maximum.accumulate(np.where(begins, before, 0))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def marks(self) -> np.ndarray:
        items = self.read(0, len(self))
        marks = [mark(*((i.image_id, i.reason) if isinstance(i, Skipped) else i)) for i in items]
        return np.array(marks, np.uint32).reshape(-1, 2)

    def read(self, start: int, stop: int) -> Iterator[tuple[str, str] | Skipped]:
        row = int(np.searchsorted(self._ends, start, side="right"))
        for pair in range(start, stop):
            while pair >= self._ends[row]:
                row += 1
            number = pair - int(self._ends[row] - self.source.caption_counts[row])
            id = f"{self._row_name(row)}#{int(self._first_number[row]) + number}"
            try:
                self.source.image_id(row)
                yield id, self.source.caption(row, number)
            except BrokenSample as error:
                yield Skipped(id, self.source.where(row), getattr(error, "kind", "broken"), one_line(error))
