"""Reads Arrow IPC files of captioned pictures, ours and ViLT's/METER's alike, by memory map.

Opening touches the batch headers and all offsets, which it checks, but neither pictures nor captions: milliseconds per
file. A picture is handed out as a view into the map, so nothing is copied before the decoder reads it, and the
operating system shares and drops the pages as it likes. Pickling keeps the paths only: a spawned worker opens the
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
from lexlip_data.sources.ipc import check_batch, is_list, open_arrow, own_metadata, read_batch, read_text
from lexlip_data.sources.skipped import Skipped
from lexlip_data.sources.source import MAX_CAPTION, MAX_NAME, usable_caption

_KEPT_BATCHES = 4096  # record batches kept open: building one anew takes some 40 microseconds


def find_shards(folder: str | Path, prefix: str) -> list[Path]:
    """`{prefix}.arrow`, or `{prefix}_0.arrow`, `{prefix}_1.arrow`, ... in numeric order; [] where there is none.

    Raises:
        DataError: both forms are there, or a number is missing.
    """
    folder = Path(folder)
    pattern = re.compile(re.escape(prefix) + r"_(\d+)\.arrow")
    numbered = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if match := pattern.fullmatch(path.name):
                numbered[int(match.group(1))] = path
    single = folder / f"{prefix}.arrow"
    if single.exists() and numbered:
        raise DataError(
            f"{folder}: both {single.name} and numbered shards such as {numbered[min(numbered)].name} are there; "
            "remove those that are out of date"
        )
    if single.exists():
        return [single]
    numbers = sorted(numbered)
    missing = next((i for i, number in enumerate(numbers) if i != number), None)
    if missing is not None:
        total = numbers[-1] + 1
        raise DataError(
            f"{folder}: {prefix}_{missing}.arrow is missing ({total - len(numbers)} of {total} shards are); "
            "copy it here or convert again, finished shards are kept"
        )
    return [numbered[i] for i in numbers]


def require_all(paths: Sequence[Path]) -> None:
    """Refuse shards the last of which are missing; `find_shards` sees the gaps before them only.

    Raises:
        DataError: the first file says that there are more.
    """
    total = own_metadata(open_arrow(paths[0]).schema).get("shards", 0) if paths else 0
    if total > len(paths):
        missing = re.sub(r"\d+(?=\.arrow$)", str(len(paths)), paths[-1].name)
        raise DataError(
            f"{paths[0].parent}: {missing} is missing ({len(paths)} of {total} shards are there); copy it here or "
            "convert again, finished shards are kept"
        )


class ArrowSource:
    """The pictures of some Arrow files, in order. See `lexlip_data.sources.source.Source` for the methods."""

    def __init__(self, name: str, split: str, paths: Sequence[str | Path], max_images: int | None = None):
        if not paths:
            raise DataError(f"data set {name}, split {split}: no Arrow files given")
        self.name, self.split = name, split
        self.paths = [Path(path) for path in paths]
        self.origin = str(self.paths[0])
        self.max_images = max_images
        self._open()

    def _open(self) -> None:
        self._readers = [open_arrow(path) for path in self.paths]
        self._kept: dict[int, dict[str, pa.Array]] = {}  # columns by name: to ask a batch for one takes longer
        self._copied = False
        batch_of, rows, counts = [], [], []
        for shard, reader in enumerate(self._readers):
            for number in range(reader.num_record_batches):
                allocated = pa.total_allocated_bytes()
                batch = self._batch(shard, number)
                self._copied |= pa.total_allocated_bytes() - allocated > batch.nbytes // 2
                check_batch(batch, self.paths[shard], number)
                batch_of.append((shard, number))
                rows.append(batch.num_rows)
                counts.append(captions_per_row(batch.column("caption")))
        self._batch_of = batch_of
        self._ends = np.cumsum(np.array(rows, dtype=np.int64))
        self._counts = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
        if self.max_images is not None:
            self._counts = self._counts[: self.max_images].copy()
        bare = np.flatnonzero(self._counts == 0).tolist()
        self.left_out = [Skipped("", "", "empty", f"{self.where(i)}: no caption") for i in bare]

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def caption_counts(self) -> np.ndarray:
        return self._counts

    def _batch(self, shard: int, number: int) -> pa.RecordBatch:
        return read_batch(self._readers[shard], self.paths[shard], number)

    def _locate(self, i: int) -> tuple[int, int]:
        """(record batch, counted over all shards, and row in it) of picture i."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} {self.split}: picture {i} of {len(self)}")
        k = int(np.searchsorted(self._ends, i, side="right"))
        return k, i - (int(self._ends[k - 1]) if k else 0)

    def _cell(self, column: str, i: int) -> pa.Scalar:
        k, row = self._locate(i)
        columns = self._kept.get(k)
        if columns is None:
            batch = self._batch(*self._batch_of[k])
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            # What is kept is pointers into the map, some kilobytes a batch; of a compressed file it is the rows.
            if len(self._kept) >= (1 if self._copied else _KEPT_BATCHES):
                self._kept.clear()
            self._kept[k] = columns
        return columns[column][row]

    def image_id(self, i: int) -> str:
        cell = self._cell("image_id", i)
        if pa.types.is_integer(cell.type) and cell.is_valid:
            return str(cell.as_py())
        return read_text(cell, "image_id", MAX_NAME)

    def image_bytes(self, i: int) -> memoryview:
        buffer = self._cell("image", i).as_buffer()
        if buffer is None:
            raise BrokenImage("the image cell is null")
        return memoryview(buffer)

    def caption(self, i: int, number: int) -> str:
        cell = self._cell("caption", i)
        return usable_caption(read_text(cell.values[number] if is_list(cell.type) else cell, "caption", MAX_CAPTION))

    def captions(self, i: int) -> list[str]:
        return [self.caption(i, number) for number in range(int(self._counts[i]))]

    def long_captions(self, i: int) -> list[str]:
        shard, _ = self._batch_of[self._locate(i)[0]]
        if "long_caption" not in self._readers[shard].schema.names:
            return []
        cell = self._cell("long_caption", i)
        cells = (cell.values or []) if is_list(cell.type) else [cell] * cell.is_valid
        return [read_text(text, "long_caption", MAX_CAPTION) for text in cells]

    def where(self, i: int) -> str:
        k, row = self._locate(i)
        shard, number = self._batch_of[k]
        return f"{self.paths[shard]}, record batch {number}, row {row}"


def captions_per_row(column: pa.Array) -> np.ndarray:
    """Captions of each row of a caption column: int64 (rows,)."""
    if not is_list(column.type):
        return np.asarray(pc.is_valid(column)).astype(np.int64)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths).astype(np.int64)
