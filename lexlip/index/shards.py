"""Lexicon vectors in Arrow shards.

A shard is an Arrow IPC file with the columns `id` (string, or whole numbers), `terms` (list of uint16 or uint32) and
`weights` (list of float16 or float32). Lists may be of any kind that Arrow has, ids a dictionary or a view. Weights
count as float16 in an index, whatever they come in. Shards that one run of `lexlip encode` wrote say so in their
schema: a folder that lacks some of them is refused.

A file may be a stranger's: each batch is validated before an offset in it is used, and nothing is unpacked that would
grow out of proportion.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from lexlip.errors import IndexingError
from lexlip.index.origin import Origin, origin_of
from lexlip.sparse import SparseRows, kind_of, plain_array
from lexlip.utils.files import write_whole
from lexlip_data.errors import DataError
from lexlip_data.sources.files import is_hidden
from lexlip_data.sources.ipc_bounds import require_proportion

log = logging.getLogger(__name__)

_RUN_KEY = b"lexlip.run"  # of the schema
_MAPPED = 1 << 26  # bytes that are read through one mapping: its pages count as ours until it is closed
_STREAM = b"\xff\xff\xff\xff"
_KINDS = {b"PAR1": "a Parquet file", b"FEA1": "a Feather file of version 1", _STREAM: "an Arrow stream"}
# Lists of a view or a dictionary may share values: of a batch at most so many more than the file holds.
_SHARED = 1 << 24


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


def read_shards(paths: Iterable[str | Path], id_prefix: str = "") -> Iterator[SparseRows]:
    """The record batches of shards, one after another; memory is that of one batch.

    Args:
        paths: files, and folders whose *.arrow files are read in the order of their names, without hidden ones.
        id_prefix: to put before each id, which makes it a string.

    Raises:
        IndexingError: no such file, a folder without shards or without all shards of a run, no Arrow file, columns
            missing or of other types, rows that an index cannot take.
    """
    if isinstance(paths, (str, bytes, Path)):
        raise IndexingError(f"paths of shards come in a list: [{str(paths)!r}], not {str(paths)!r}")
    for path in _files(paths):
        number, count, before = 0, 1, None
        while number < count:
            with _opened(path) as reader:
                before, left = _unchanged(path, before), _MAPPED
                origin, count = origin_of(reader.schema.metadata, path), reader.num_record_batches
                while number < count and left > 0:
                    batch = reader.get_batch(number)
                    number, left = number + 1, left - batch.get_total_buffer_size()
                    yield with_prefix(replace(_rows(path, batch), origin=origin), id_prefix)


def _unchanged(path: Path, before: tuple | None) -> tuple:
    """What tells that a file is the same one as before, which it must be."""
    status = os.stat(path)
    now = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if before not in (None, now):
        raise IndexingError(f"{path} was written to while it was read; try again")
    return now


def with_prefix(rows: SparseRows, prefix: str) -> SparseRows:
    """Rows whose ids begin with a prefix, as strings; their source says so."""
    if not prefix:
        return rows
    ids = rows.ids if kind_of(rows.ids) == "string" else pa.array(rows.ids).cast(pa.large_string())
    try:
        ids = pc.binary_join_element_wise(pa.scalar(prefix, pa.large_string()), ids, pa.scalar("", pa.large_string()))
    except UnicodeEncodeError as error:
        raise IndexingError(f"the prefix {prefix!r} is no text that UTF-8 can hold") from error
    origin = rows.origin
    if origin and origin.source:
        origin = Origin(origin.model, replace(origin.source, id_prefix=prefix + origin.source.id_prefix))
    return replace(rows, ids=ids, origin=origin)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob("*.arrow"))
            inside = [file for file in found if not is_hidden(file.name)]  # as macOS puts beside others
            if len(inside) < len(found):
                log.warning("%s: %s hidden files were passed over", path, f"{len(found) - len(inside):,}")
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
            require_proportion(file, path)
            yield reader
    except DataError as error:
        raise IndexingError(str(error)) from error
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise IndexingError(f"{path} is {_kind(path) or f'no Arrow IPC file, or damaged: {text[:200]}'}") from error


def _kind(path: Path) -> str:
    """What a file is that is often taken for an Arrow file, and what to do; else nothing."""
    try:
        with open(path, "rb") as file:
            kind = _KINDS.get(file.read(4))
    except OSError:
        return ""
    return f"{kind}, not an Arrow IPC file: write it with pyarrow.ipc.new_file" if kind else ""


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
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
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
    batch.validate(full=True)  # offsets inside, UTF-8, indices of dictionaries: before any of them is used
    ids = plain_array(batch.column("id"), str(path))
    lists = {name: _lists(path, name, batch.column(name)) for name in ("terms", "weights")}
    (offsets, terms), (other, weights) = lists.values()
    if not np.array_equal(offsets, other):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(other))[0])
        raise IndexingError(
            f"{path}: id {ids[row]} has {offsets[row + 1] - offsets[row]} terms but "
            f"{other[row + 1] - other[row]} weights"
        )
    return SparseRows.from_arrays(ids, offsets, terms, weights, str(path))


def _lists(path: Path, name: str, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and values of a column of lists of any kind."""
    if pa.types.is_run_end_encoded(column.type):
        raise IndexingError(f"{path}: column {name} is run-end encoded; write it as a list")
    indices = None
    if pa.types.is_dictionary(column.type):
        if column.null_count:
            raise IndexingError(f"{path}: column {name} has missing values")
        indices, column = column.indices, column.dictionary
    kind = column.type
    if not str(kind).split("<")[0].endswith(("list", "list_view")):  # also fixed-size and large ones
        raise IndexingError(f"{path}: column {name} is {kind}; it must be a list")
    lengths = pc.list_value_length(column)
    if indices is not None:
        lengths = lengths.take(indices)
    if column.null_count:
        raise IndexingError(f"{path}: column {name} has missing values")
    lengths = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    if lengths.sum() > len(column.values) + _SHARED:
        raise IndexingError(f"{path}: the lists of column {name} share so many values that they do not fit into memory")
    values = (column if indices is None else column.take(indices)).flatten()
    values = plain_array(values, str(path))
    if values.null_count:
        raise IndexingError(f"{path}: column {name} has missing values")
    return np.concatenate([[0], lengths.cumsum()]), values.to_numpy(zero_copy_only=False)
