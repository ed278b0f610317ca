"""Reads Arrow IPC files of captioned images, ours and ViLT's/METER's alike, by memory map.

Opening touches the batch headers and all offsets, which it checks, but neither images nor captions: milliseconds per
file. An image is handed out as a view into the map, so nothing is copied before the decoder reads it, and the
operating system shares and drops its pages as it likes. Pickling keeps only the paths: a spawned worker opens the
files again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.sources.ipc import (
    check_batch,
    decoded,
    is_list,
    open_arrow,
    read_batch,
    read_bytes,
    read_metadata,
    read_text,
)
from lexlip_data.sources.skipped import Skipped
from lexlip_data.sources.source import MAX_CAPTION, MAX_NAME, Source, locate, usable_caption

_KEPT_BATCHES = 4096  # record batches kept open: building one anew takes some 40 microseconds


def find_arrow_files(folder: str | Path, prefix: str) -> list[Path]:
    """`{prefix}.arrow`, or `{prefix}_0.arrow`, `{prefix}_1.arrow`, ... in numeric order; [] where there is none.

    Raises:
        DataError: both forms are there, or a number is missing.
    """
    folder = Path(folder)
    pattern = re.compile(re.escape(prefix) + r"_(\d+)\.arrow")
    paths = folder.iterdir() if folder.is_dir() else ()
    numbered = {int(match.group(1)): path for path in paths if (match := pattern.fullmatch(path.name))}
    single = folder / f"{prefix}.arrow"
    if single.exists():
        if numbered:
            raise DataError(
                f"{folder}: both {single.name} and numbered shards such as {numbered[min(numbered)].name} are there; "
                "remove those that are out of date"
            )
        return [single]
    missing = next((i for i in range(len(numbered)) if i not in numbered), None)
    if missing is not None:
        total = max(numbered) + 1
        raise DataError(
            f"{folder}: {prefix}_{missing}.arrow is missing ({total - len(numbered)} of {total} shards are); "
            "copy it here or convert again, finished shards are kept"
        )
    return [numbered[i] for i in range(len(numbered))]


def require_all(paths: Sequence[Path]) -> None:
    """Refuse shards the last of which are missing; `find_arrow_files` notices only gaps before the last one there.

    Raises:
        DataError: the first file says that there are more.
    """
    total = read_metadata(paths[0]).get("shards", 0) if paths else 0
    if total > len(paths):
        missing = re.sub(r"\d+(?=\.arrow$)", str(len(paths)), paths[-1].name)
        raise DataError(
            f"{paths[0].parent}: {missing} is missing ({len(paths)} of {total} shards are there); copy it here or "
            "convert again, finished shards are kept"
        )


class ArrowSource(Source):
    """The images of some Arrow files, in order. See `lexlip_data.sources.source.Source` for the methods."""

    def __init__(self, name: str, split: str, paths: Sequence[str | Path], max_images: int | None = None):
        if isinstance(paths, (str, bytes, Path)):
            raise DataError(f"paths of Arrow files come in a list: [{str(paths)!r}], not {str(paths)!r}")
        if not paths:
            raise DataError(f"data set {name}, split {split}: no Arrow files given")
        self.name, self.split, self.max_images = name, split, max_images
        self.paths = [Path(path) for path in paths]
        self.origin = str(self.paths[0])
        self._files = [open_arrow(path) for path in self.paths]
        self._batches: list[tuple[int, int]] = []  # (file, number in it) of each record batch
        copied, rows, counts = False, [], [np.zeros(0, dtype=np.int64)]
        for shard, file in enumerate(self._files):
            for number in range(file.num_record_batches):
                before = pa.total_allocated_bytes()
                batch = read_batch(file, self.paths[shard], number)
                allocated = pa.total_allocated_bytes() - before
                check_batch(batch, self.paths[shard], number)
                copied |= allocated > batch.get_total_buffer_size() // 2
                self._batches.append((shard, number))
                rows.append(batch.num_rows)
                counts.append(captions_per_row(batch.column("caption")))
        # What is kept is pointers into the map, some kilobytes a batch; of a compressed file it is the rows.
        self._kept: dict[int, dict[str, pa.Array]] = {}
        self._most_kept = 1 if copied else _KEPT_BATCHES
        self._ends = np.cumsum(rows, dtype=np.int64)
        self.caption_counts = np.concatenate(counts)[:max_images].copy()
        bare = np.flatnonzero(self.caption_counts == 0).tolist()
        self.left_out = [Skipped("", "", "empty", f"{self.where(i)}: no caption") for i in bare]

    def __reduce__(self) -> tuple:
        return ArrowSource, (self.name, self.split, self.paths, self.max_images)

    def _columns(self, k: int) -> dict[str, pa.Array]:
        """The columns of record batch k by name: asking the batch itself for one takes longer."""
        if k not in self._kept:
            shard, number = self._batches[k]
            batch = read_batch(self._files[shard], self.paths[shard], number)
            if len(self._kept) >= self._most_kept:
                self._kept.clear()
            self._kept[k] = dict(zip(batch.schema.names, batch.columns, strict=True))
        return self._kept[k]

    def _locate(self, i: int) -> tuple[int, int]:
        """(record batch, counted over all files, and row in it) of image i."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} {self.split}: image {i} of {len(self)}")
        return locate(self._ends, i)

    def _cell(self, column: str, i: int) -> pa.Scalar:
        k, row = self._locate(i)
        return self._columns(k)[column][row]

    def image_id(self, i: int) -> str:
        cell = self._cell("image_id", i)
        value = decoded(cell)
        if value is not None and pa.types.is_integer(value.type) and value.is_valid:
            return str(value.as_py())
        return read_text(cell, "image_id", MAX_NAME)

    def image_bytes(self, i: int) -> memoryview:
        buffer = read_bytes(self._cell("image", i))
        if buffer is None:
            raise BrokenImage("the image cell is null")
        return memoryview(buffer)

    def caption(self, i: int, number: int) -> str:
        cell = self._cell("caption", i)
        return usable_caption(read_text(cell.values[number] if is_list(cell.type) else cell, "caption", MAX_CAPTION))

    def long_captions(self, i: int) -> list[str]:
        k, row = self._locate(i)
        column = self._columns(k).get("long_caption")
        if column is None:
            return []
        cell = column[row]
        cells = (cell.values or []) if is_list(cell.type) else [cell] * cell.is_valid
        return [read_text(text, "long_caption", MAX_CAPTION) for text in cells]

    def coco_ids(self, i: int) -> tuple[str, list[str]]:
        k, row = self._locate(i)
        columns = self._columns(k)
        if not {"cocoid", "caption_id"} <= columns.keys() or not is_list(columns["caption_id"].type):
            return "", []
        ids = columns["caption_id"][row].values or []
        texts = [read_text(cell, "caption_id", MAX_NAME) for cell in ids]
        return read_text(columns["cocoid"][row], "cocoid", MAX_NAME), texts

    def where(self, i: int) -> str:
        k, row = self._locate(i)
        shard, number = self._batches[k]
        return f"{self.paths[shard]}, record batch {number}, row {row}"


def captions_per_row(column: pa.Array) -> np.ndarray:
    """Captions of each row of a caption column: int64 (rows,)."""
    counts = pc.fill_null(pc.list_value_length(column), 0) if is_list(column.type) else pc.is_valid(column)
    return np.asarray(counts).astype(np.int64)
