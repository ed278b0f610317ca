"""Captioned pictures as a table of (title, filepath, image_id) rows: the TSV layout read without conversion.

The whole table is held as string buffers and grouped by picture with numpy; pictures are opened from disk one by one.
Forked workers share the buffers; a spawned one parses the file again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import BrokenImage, DataError, one_line
from lexlip_data.sources.files import read_picture, real_roots
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.source import MAX_CAPTION, MAX_NAME
from lexlip_data.sources.tsv import read_columns

__all__ = ["CaptionTable", "TsvSource", "read_columns"]


class CaptionTable:
    """Rows grouped to pictures in the order of their first row; the methods are `sources.source.Source`'s.

    Left out, and listed in `left_out`: rows with an empty or absurdly long title or file path, and rows that give an
    id to a second file.
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
        *,
        rules: Rules = USUAL_RULES,
        roots: Sequence[str] | None = None,
        numbers: np.ndarray | None = None,
        left_out: Iterable[Skipped] = (),
    ):
        """
        Args:
            titles, paths, image_ids, long_titles: one entry per caption. Without ids the path is the id.
            folder: what relative paths start from.
            max_images: keep the first so many pictures.
            origin: file the rows come from, for messages.
            rules: how many bad rows are too many, and where else pictures may lie.
            roots: folders that paths and links must not leave, from `real_roots`; none: they may lead anywhere; None:
                `folder` and the rules' picture_roots.
            numbers: int64, of each row in its file, for messages; None: counted from 1.
            left_out: rows that the reader left out already.
        Raises:
            DataError: too many rows are bad.
        """
        self.name, self.split, self.folder, self.origin = name, split, Path(folder), origin or "rows"
        self.max_images, self.rules, self.left_out = max_images, rules, list(left_out)
        self.roots = real_roots(self.folder, rules.picture_roots) if roots is None else tuple(roots)
        self._titles, self._paths = _strings(titles), _strings(paths)
        self._ids = self._paths if image_ids is None else _strings(image_ids)
        self._longs = None if long_titles is None else _strings(long_titles)
        self._lines = np.arange(1, len(self._titles) + 1) if numbers is None else numbers
        self._leave_out_unusable()
        if self._group():
            self._group()
        if max_images is not None:
            self._counts = self._counts[:max_images]
        self._ends = np.cumsum(self._counts)

    @property
    def empty_rows(self) -> int:
        return sum(item.kind == "empty" for item in self.left_out)

    def _leave_out_unusable(self) -> None:
        titles, paths = self._titles, self._paths
        has_title = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(titles)), 0)
        empty = ~np.asarray(pc.and_(has_title, pc.greater(pc.utf8_length(paths), 0)))
        long = np.zeros(len(titles), dtype=bool)
        for column in (titles, paths, self._ids, self._longs):
            if column is not None:
                most = MAX_NAME if column is paths or column is self._ids else MAX_CAPTION
                long |= np.asarray(pc.greater(pc.utf8_length(column), most))
        too_long = f"a caption of more than {MAX_CAPTION:,} letters, or a path or id of more than {MAX_NAME:,}"
        reasons = [
            ("empty", "no caption or no file", np.flatnonzero(empty)),
            ("long", too_long, np.flatnonzero(long & ~empty)),
        ]
        n_bad, allowed = int((empty | long).sum()), self.rules.allowed(len(titles))
        if n_bad > allowed:
            counts = "; ".join(f"{len(at):,} have {reason}" for _, reason, at in reasons if len(at))
            first = self._lines[np.flatnonzero(empty | long)[0]]
            raise DataError(
                f"{self.origin}: {n_bad:,} of {len(titles):,} rows cannot be used, more than the {allowed:,} that "
                f"max_bad_share {self.rules.max_bad_share:g} allows: {counts}; the first is row {first}"
            )
        for kind, reason, at in reasons:
            self.left_out += [self._skipped(int(i), kind, reason) for i in at]
        if n_bad:
            self._keep(~(empty | long))

    def _skipped(self, i: int, kind: str, reason: str) -> Skipped:
        ids, paths = (one_line(column[i].as_py()) for column in (self._ids, self._paths))
        return Skipped(ids, paths, kind, f"row {self._lines[i]}: {reason}")

    def _keep(self, keep: np.ndarray) -> None:
        mask = pa.array(keep)
        self._titles, self._paths, self._ids = (
            column.filter(mask) for column in (self._titles, self._paths, self._ids)
        )
        self._longs = None if self._longs is None else self._longs.filter(mask)
        self._lines = self._lines[keep]

    def _group(self) -> bool:
        """Number the rows by picture. Returns whether rows were left out on the way, which makes the numbers stale."""
        codes = np.asarray(self._ids.dictionary_encode().indices).astype(np.int64)
        self._rows = np.argsort(codes, kind="stable")
        self._counts = np.bincount(codes).astype(np.int64) if len(codes) else np.zeros(0, dtype=np.int64)
        if not len(codes):
            return False
        first = self._rows[np.cumsum(self._counts) - self._counts][codes]  # of each row, the first row of its picture
        path_codes = np.asarray(self._paths.dictionary_encode().indices).astype(np.int64)
        same = path_codes == path_codes[first]
        clashes = np.flatnonzero(~same).tolist()
        if not clashes:
            return False

        def clash(i: int) -> Skipped:
            one, two = (one_line(self._paths[j].as_py()) for j in (int(first[i]), i))
            reason = f"image_id {one_line(self._ids[i].as_py())!r} stands for two files, {one} and {two}"
            return self._skipped(i, "repeated", f"{reason}; give every picture its own image_id")

        self.rules.check_rows(len(clashes), len(codes), self.origin, clash(clashes[0]).reason)
        self.left_out += [clash(i) for i in clashes]
        self._keep(same)
        return True

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
            return read_picture(path, self.roots)
        except BrokenImage as error:
            raise type(error)(f"{path} cannot be read ({error})") from error

    def caption(self, i: int, number: int) -> str:
        return self._titles[int(self._rows_of(i)[number])].as_py()

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
        return f"{self.origin}, row {int(self._lines[int(self._rows_of(i)[0])])}, file {self.path(i)}"

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

    def __init__(
        self,
        name: str,
        split: str,
        path: str | Path,
        max_images: int | None = None,
        rules: Rules = USUAL_RULES,
        root: str | Path | None = None,
    ):
        """
        Args:
            path: TAB- or comma-separated text with the columns title, filepath and optionally image_id and
                long_caption; file paths are relative to the table's folder.
            root: the data root; pictures must not leave it, or the table's folder where that lies elsewhere.
        Raises:
            DataError: the file is absent or malformed, a column is missing, or too many rows are bad.
        """
        self.table_path, self.root = Path(path), root
        rows = read_columns(path, rules)
        columns, folder = rows.columns, self.table_path.parent
        super().__init__(
            name, split, columns["title"], columns["filepath"], columns.get("image_id"), columns.get("long_caption"),
            folder=folder, max_images=max_images, origin=str(path), rules=rules,
            roots=real_roots(*(() if root is None else (root,)), folder, rules.picture_roots),
            numbers=rows.numbers, left_out=rows.bad,
        )  # fmt: skip

    def __reduce__(self) -> tuple:
        return TsvSource, (self.name, self.split, str(self.table_path), self.max_images, self.rules, self.root)


def _strings(values: pa.Array | list[str]) -> pa.Array:
    """With 64-bit offsets: a table's texts may be more than 2 GB together."""
    if isinstance(values, list):
        values = pa.array(values, pa.large_string())
    return pc.fill_null(values.cast(pa.large_string()), "")
