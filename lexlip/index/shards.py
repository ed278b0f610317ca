"""Lexicon vectors in Arrow shards.

A shard is an Arrow IPC file with the columns `id` (string, or whole numbers), `terms` (list of uint16 or uint32) and
`weights` (list of float16 or float32). Weights count as float16 in an index, whatever they come in. Shards that one
run of `lexlip encode` wrote say so in their schema: a folder that lacks some of them is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from lexlip.errors import IndexingError
from lexlip.sparse import SparseRows
from lexlip.utils.files import write_whole

_RUN_KEY = b"lexlip.run"  # of the schema


def run_metadata(run: str, shard: int, shards: int) -> dict[bytes, str]:
    """For a shard's schema: it is number `shard`, from 0, of the shards of a run, whose name all of them share."""
    return {_RUN_KEY: json.dumps({"id": run, "shard": shard, "shards": shards})}


def record_batch(rows: SparseRows, schema: pa.Schema) -> pa.RecordBatch:
    """Rows in the types of a shard's schema."""
    offsets = pa.array(rows.offsets, pa.int32())
    ids = rows.ids if isinstance(rows.ids, pa.Array) else pa.array(rows.ids)
    columns = [
        ids.cast(schema.field("id").type),
        pa.ListArray.from_arrays(offsets, pa.array(rows.terms).cast(schema.field("terms").type.value_type)),
        pa.ListArray.from_arrays(offsets, pa.array(rows.weights)),
    ]
    return pa.record_batch(columns, schema=schema)


def write_shard(path: str | Path, batches: Iterable[SparseRows]) -> None:
    """Write rows as one Arrow file, a record batch each; the file appears when it is complete."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise IndexingError(f"{path}: no rows to write")
    id_type = first.ids.type if isinstance(first.ids, pa.Array) else pa.int64()
    schema = pa.schema({"id": id_type, "terms": pa.list_(pa.uint32()), "weights": pa.list_(pa.float16())})

    def write(file) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(record_batch(first, schema))
            for rows in batches:
                writer.write_batch(record_batch(rows, schema))

    write_whole(path, write)


def read_shards(paths: Iterable[str | Path]) -> Iterator[SparseRows]:
    """The record batches of shards, one after another; memory is that of one batch.

    Args:
        paths: files, and folders whose *.arrow files are read in the order of their names.

    Raises:
        IndexingError: no such file, a folder without shards or without all shards of a run, no Arrow file, columns
            missing or of other types, rows that an index cannot take.
    """
    for path in _files(paths):
        with _opened(path) as reader:
            for number in range(reader.num_record_batches):
                yield _rows(path, reader.get_batch(number))


def _files(paths: Iterable[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.glob("*.arrow"))
            if not inside:
                raise IndexingError(f"{path} holds no *.arrow files")
            _require_whole_runs(path, inside)
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise IndexingError(f"{path}: no such file or folder")
    return files


@contextmanager
def _opened(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            yield reader
    except pa.ArrowInvalid as error:
        raise IndexingError(f"{path} is no Arrow IPC file, or cut short: {error}") from error


def _require_whole_runs(folder: Path, paths: list[Path]) -> None:
    there: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        with _opened(path) as reader:
            text = (reader.schema.metadata or {}).get(_RUN_KEY)
        if text is None:
            continue
        try:
            run = json.loads(text)
            there.setdefault((str(run["id"]), int(run["shards"])), set()).add(int(run["shard"]))
        except (ValueError, TypeError, KeyError) as error:
            raise IndexingError(f"{path}: its schema says nothing usable of its run ({error})") from error
    for (_, shards), numbers in there.items():
        if len(numbers) < shards:
            raise IndexingError(
                f"{folder} holds {len(numbers)} of the {shards} shards that lexlip encode writes there; the same "
                "command again goes on with the others"
            )


def _rows(path: Path, batch: pa.RecordBatch) -> SparseRows:
    missing = [name for name in ("id", "terms", "weights") if name not in batch.schema.names]
    if missing:
        raise IndexingError(
            f"{path} has no column {' and no column '.join(missing)}, only {', '.join(batch.schema.names)}"
        )
    lists = {}
    for name in ("terms", "weights"):
        column = batch.column(name)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise IndexingError(f"{path}: column {name} is {column.type}; it must be a list")
        if column.null_count or column.flatten().null_count:
            raise IndexingError(f"{path}: column {name} has missing values")
        offsets = column.offsets.to_numpy().astype(np.int64)
        lists[name] = offsets - offsets[0], column.flatten().to_numpy(zero_copy_only=False)
    (offsets, terms), (other, weights) = lists.values()
    if not np.array_equal(offsets, other):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(other))[0])
        raise IndexingError(
            f"{path}: id {batch.column('id')[row]} has {offsets[row + 1] - offsets[row]} terms but "
            f"{other[row + 1] - other[row]} weights"
        )
    return SparseRows.from_arrays(batch.column("id"), offsets, terms, weights, str(path))
