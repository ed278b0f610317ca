"""Reads Arrow IPC files of captioned pictures, ours and ViLT's/METER's alike, by memory map.

Opening touches the batch headers and the captions' offsets, not the pictures: milliseconds per file. A picture is
handed out as a view into the map, so nothing is copied before the decoder reads it, and the operating system
shares and drops the pages as it likes. Pickling keeps the paths only: a spawned worker opens the files again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import BrokenImage, DataError

REQUIRED_COLUMNS = ("image", "caption", "image_id")


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
    if single.is_file() and numbered:
        raise DataError(
            f"{folder}: both {single.name} and numbered shards such as {numbered[min(numbered)].name} are there; "
            "remove those that are out of date"
        )
    if single.is_file():
        return [single]
    missing = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if missing:
        raise DataError(
            f"{folder}: {prefix}_{missing[0]}.arrow is missing ({len(missing)} of {max(numbered) + 1} shards are); "
            "copy it here or convert again, finished shards are kept"
        )
    return [numbered[i] for i in sorted(numbered)]


def open_arrow(path: str | Path) -> pa.ipc.RecordBatchFileReader:
    """Memory-map one Arrow IPC file.

    Raises:
        DataError: the file is absent, truncated or not an Arrow IPC file, or lacks a column.
    """
    try:
        # Views into a map leave nothing to do in threads, which forked workers had better not start.
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"), options=pa.ipc.IpcReadOptions(use_threads=False))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a complete Arrow IPC file ({error}); it may be a broken copy: copy or convert it again"
        ) from error
    missing = [column for column in REQUIRED_COLUMNS if column not in reader.schema.names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns are {', '.join(reader.schema.names)}")
    kind = reader.schema.field("image").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{path}: column image is {kind}, not binary: it must hold the encoded picture files")
    return reader


class ArrowSource:
    """The pictures of some Arrow files, in order. See `lexlip_data.source.Source` for the methods."""

    def __init__(self, name: str, split: str, paths: Sequence[str | Path], max_images: int | None = None):
        if not paths:
            raise DataError(f"data set {name}, split {split}: no Arrow files given")
        self.name, self.split = name, split
        self.paths = [Path(path) for path in paths]
        self.max_images = max_images
        self._open()

    def _open(self) -> None:
        self._readers = [open_arrow(path) for path in self.paths]
        batch_of, rows, counts = [], [], []
        for shard, reader in enumerate(self._readers):
            for number in range(reader.num_record_batches):
                batch = self._batch(shard, number)
                batch_of.append((shard, number))
                rows.append(batch.num_rows)
                counts.append(_captions_per_row(batch.column("caption")))
        self._batch_of = np.array(batch_of, dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum(np.array(rows, dtype=np.int64))
        self._counts = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
        if self.max_images is not None:
            self._counts = self._counts[: self.max_images].copy()

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
        try:
            return self._readers[shard].get_batch(number)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self.paths[shard]}: record batch {number} cannot be read ({error})") from error

    def _locate(self, i: int) -> tuple[int, int, int]:
        """(shard, record batch, row in the batch) of picture i."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} {self.split}: picture {i} of {len(self)}")
        k = int(np.searchsorted(self._ends, i, side="right"))
        start = int(self._ends[k - 1]) if k else 0
        shard, number = self._batch_of[k]
        return int(shard), int(number), i - start

    def _cell(self, column: str, i: int) -> pa.Scalar:
        # The batch is built anew from the map each time (some 20 microseconds): keeping thousands of them is memory.
        shard, number, row = self._locate(i)
        return self._batch(shard, number).column(column)[row]

    def image_id(self, i: int) -> str:
        return str(self._cell("image_id", i).as_py())

    def image_bytes(self, i: int) -> memoryview:
        buffer = self._cell("image", i).as_buffer()
        if buffer is None:
            raise BrokenImage("the image cell is null")
        return memoryview(buffer)

    def captions(self, i: int) -> list[str]:
        return _as_list(self._cell("caption", i).as_py())

    def long_captions(self, i: int) -> list[str]:
        shard, _, _ = self._locate(i)
        if "long_caption" not in self._readers[shard].schema.names:
            return []
        return _as_list(self._cell("long_caption", i).as_py())

    def where(self, i: int) -> str:
        shard, number, row = self._locate(i)
        return f"{self.paths[shard]}, record batch {number}, row {row}"


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _captions_per_row(column: pa.Array) -> np.ndarray:
    if not _is_list(column.type):
        return np.asarray(pc.is_valid(column)).astype(np.int64)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths).astype(np.int64)


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return ["" if text is None else str(text) for text in value]
