"""Captioned images as a table of (title, filepath, image_id) rows: the TSV layout read without conversion.

The whole table is held as string buffers and grouped by image with numpy; images are opened from disk one by one.
Forked workers share the buffers; a spawned one parses the file again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import BrokenImage, DataError, one_line
from lexlip_data.sources.files import read_image, real_roots
from lexlip_data.sources.paths import normal_paths
from lexlip_data.sources.rows import COCO_IDS, Rows
from lexlip_data.sources.skipped import USUAL_RULES, Rules
from lexlip_data.sources.source import MAX_CAPTION, MAX_NAME, Source
from lexlip_data.sources.tsv import read_columns

# Characters allowed in the columns that are kept.
_MOST = {"title": MAX_CAPTION, "filepath": MAX_NAME, "image_id": MAX_NAME, "long_caption": MAX_CAPTION}
_MOST |= dict.fromkeys(COCO_IDS, MAX_NAME)


class CaptionTable(Source):
    """Rows grouped into images, in the order of their first rows. See `sources.source.Source` for the methods.

    `left_out` lists the rows with an empty or absurdly long title or file path, and those that give an id to a second
    file.
    """

    def __init__(
        self,
        name: str,
        split: str,
        rows: Rows,
        folder: str | Path = "",
        origin: str | Path = "rows",
        rules: Rules = USUAL_RULES,
        roots: Sequence[str] | None = None,
    ):
        """
        Args:
            folder: what relative paths start from.
            origin: file the rows come from, for messages.
            rules: how many bad rows are too many, and where else images may be.
            roots: folders that paths and links must not leave, from `real_roots`; none: they may lead anywhere; None:
                `folder` and the rules' picture_roots.
        Raises:
            DataError: too many rows are bad.
        """
        self.name, self.split, self.folder, self.origin = name, split, Path(folder), str(origin)
        self.max_images: int | None = None
        self.rules = rules
        self.roots = real_roots(self.folder, rules.picture_roots) if roots is None else tuple(roots)
        self.read: Callable[[str], bytes] = partial(read_image, roots=self.roots)
        rows = self._without_unusable(rows)
        rows.columns["filepath"] = normal_paths(rows.columns["filepath"], self.folder)
        codes = codes_of(rows.image_ids)
        rows, kept = self._without_clashes(rows, codes)
        self.left_out, self._numbers = rows.left_out, rows.numbers
        columns = {**rows.columns, "image_id": rows.image_ids}
        self._columns = {column: columns[column] for column in _MOST if column in columns}
        self.has_long_captions = "long_caption" in self._columns
        self.has_coco_ids = all(name in self._columns for name in COCO_IDS)
        self._rows = np.argsort(codes[kept], kind="stable")  # those of image i end at _ends[i]
        self.caption_counts = np.bincount(codes[kept])
        self._ends = np.cumsum(self.caption_counts)

    def _without_unusable(self, rows: Rows) -> Rows:
        columns = {**rows.columns, "image_id": rows.image_ids}
        has_title = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(columns["title"])), 0)
        empty = ~np.asarray(pc.and_(has_title, pc.greater(pc.utf8_length(columns["filepath"]), 0)))
        long = np.zeros(len(rows), dtype=bool)
        for column, most in _MOST.items():
            if column in columns:
                long |= np.asarray(pc.greater(pc.utf8_length(columns[column]), most))
        bad, allowed = empty | long, self.rules.allowed(len(rows))
        too_long = f"a caption of more than {MAX_CAPTION:,} characters, or a path or id of more than {MAX_NAME:,}"
        reasons = (("empty", "no caption or no file", empty), ("long", too_long, long & ~empty))
        if bad.sum() > allowed:
            counts = "; ".join(f"{mask.sum():,} have {reason}" for _, reason, mask in reasons if mask.any())
            raise DataError(
                f"{self.origin}: {bad.sum():,} of {len(rows):,} rows cannot be used, more than the {allowed:,} that "
                f"max_bad_share {self.rules.max_bad_share:g} allows: {counts}; the first is row "
                f"{rows.numbers[bad.argmax()]}"
            )
        return rows.leave_out(
            {i: (kind, reason) for kind, reason, mask in reasons for i in np.flatnonzero(mask).tolist()}
        )

    def _without_clashes(self, rows: Rows, image_codes: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Without the rows that give an id to a second file; and which rows are kept, bool (rows,)."""
        paths, path_codes = rows.columns["filepath"], codes_of(rows.columns["filepath"])
        first = first_of_each(image_codes)
        same = path_codes == path_codes[first]
        clashes, bad = np.flatnonzero(~same).tolist(), dict[int, tuple[str, str]]()
        for i in clashes:
            cells = (rows.image_ids[i], paths[int(first[i])], paths[i])
            image_id, one, two = (one_line(cell.as_py()) for cell in cells)
            reason = f"image_id {image_id!r} stands for two files, {one} and {two}; give every image its own image_id"
            if not bad:
                self.rules.check_rows(len(clashes), len(rows), self.origin, f"row {rows.numbers[i]}: {reason}")
            bad[i] = "repeated", reason
        return rows.leave_out(bad), same

    def keep_first(self, max_images: int | None) -> None:
        """Forget all images but the first so many; None: keep all."""
        self.max_images = max_images
        self.caption_counts, self._ends = self.caption_counts[:max_images], self._ends[:max_images]

    def _rows_of(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} {self.split}: image {i} of {len(self)}")
        return self._rows[self._ends[i] - self.caption_counts[i] : self._ends[i]]

    def _cell(self, column: str, i: int, number: int = 0) -> str:
        return self._columns[column][int(self._rows_of(i)[number])].as_py()

    def image_id(self, i: int) -> str:
        return self._cell("image_id", i)

    def path(self, i: int) -> Path:
        """The image's file; relative paths start from the table's folder."""
        return self.folder / self._cell("filepath", i)

    def image_bytes(self, i: int) -> bytes:
        path = self.path(i)
        try:
            return self.read(str(path))
        except BrokenImage as error:
            raise type(error)(f"{path} cannot be read ({error})") from error

    def caption(self, i: int, number: int) -> str:
        return self._cell("title", i, number)

    def long_captions(self, i: int) -> list[str]:
        if not self.has_long_captions:
            return []
        texts = self._columns["long_caption"].take(pa.array(self._rows_of(i))).to_pylist()
        return list(dict.fromkeys(text for text in texts if text))  # one text repeated on every row counts once

    def coco_ids(self, i: int) -> tuple[str, list[str]]:
        if not self.has_coco_ids:
            return "", []
        return self._cell("cocoid", i), self._columns["caption_id"].take(pa.array(self._rows_of(i))).to_pylist()

    def where(self, i: int) -> str:
        return f"{self.origin}, row {self._numbers[self._rows_of(i)[0]]}, file {self.path(i)}"

    def fingerprint(self) -> str:
        """A hash of every id, path and caption that this table hands out."""
        rows = pa.array(self._rows[: self.caption_counts.sum()])
        digest = hashlib.blake2b(digest_size=16)
        for name in ("image_id", "filepath", "title", "long_caption", *COCO_IDS):
            if name in self._columns:
                column = self._columns[name].take(rows)
                digest.update(np.asarray(pc.binary_length(column)).tobytes())
                digest.update(column.buffers()[2] or b"")
        return digest.hexdigest()


class TsvSource(CaptionTable):
    """A table file as a source. Pickling keeps the path: a spawned worker parses the file again."""

    def __init__(
        self,
        name: str,
        split: str,
        path: str | Path,
        max_images: int | None = None,
        rules: Rules = USUAL_RULES,
        root: str | Path | None = None,
        images: str | Path | None = None,
    ):
        """
        Args:
            path: TAB- or comma-separated text with the columns title, filepath and optionally image_id and
                long_caption; file paths are relative to `images`, or to the table's folder.
            root: the data root; images must not leave it, or that folder where it lies elsewhere.
        Raises:
            DataError: the file is absent or malformed, a column is missing, or too many rows are bad.
        """
        self.table_path, self.root, self.images = Path(path), root, images
        folder = self.table_path.parent if images is None else Path(images)
        roots = real_roots([] if root is None else root, folder, rules.picture_roots)
        super().__init__(name, split, read_columns(path, rules), folder, path, rules, roots)
        self.keep_first(max_images)

    def __reduce__(self) -> tuple:
        return TsvSource, (
            self.name, self.split, str(self.table_path), self.max_images, self.rules, self.root, self.images,
        )  # fmt: skip


def codes_of(texts: pa.Array) -> np.ndarray:
    """A number for each text, equal for equal ones, counted from 0 in the order in which they occur: int64 (rows,)."""
    return np.asarray(texts.dictionary_encode().indices).astype(np.int64)


def first_of_each(codes: np.ndarray) -> np.ndarray:
    """Of each row the first row with the same one of `codes_of`: int64 (rows,)."""
    return np.unique(codes, return_index=True)[1][codes]
