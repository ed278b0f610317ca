"""Lexicon vectors as rows of terms and weights: in memory, and in Arrow shards.

A shard is an Arrow IPC file with the columns `id` (string, or whole numbers), `terms` (list of uint16 or uint32) and
`weights` (list of float16 or float32). Weights count as float16 in an index, whatever they come in. Shards that one
run of `lexlip encode` wrote say so in their schema: a folder that lacks some of them is refused.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from lexlip.errors import IndexingError
from lexlip.index import id_column
from lexlip.index.id_column import Ids

MAX_TERM = 2**22 - 1  # arrays with a place for every term are held while an index is built
_HEAVIEST = float(np.finfo(np.float16).max)
RUN_KEY = b"lexlip.run"  # of the schema: a `Run`


@dataclass(frozen=True)
class Run:
    """Which of how many shards a file is.

    Attributes:
        id: the same for all shards of a run.
        shard: its number, from 0.
        shards: of the run.
    """

    id: str
    shard: int
    shards: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class SparseRows:
    """Some documents: their ids, terms and weights.

    Attributes:
        ids: (N,) int64, or an Arrow array of strings.
        offsets: (N + 1,) int64; row i holds terms[offsets[i]:offsets[i + 1]].
        terms: (nnz,) uint32, in any order within a row, no term twice.
        weights: (nnz,) float16, not negative.
        source: what messages call them.
    """

    ids: Ids
    offsets: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    source: str = "vectors"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_arrays(
        cls, ids: Sequence | Ids, offsets: np.ndarray, terms: np.ndarray, weights: np.ndarray, source: str = "vectors"
    ) -> SparseRows:
        """Check rows, and bring them to the types of an index.

        Args:
            ids: whole numbers or strings.
            offsets, terms, weights: as the attributes, of any numeric types.
            source: what messages call the rows.

        Raises:
            IndexingError: lengths that do not fit, terms out of range, weights that are negative, no numbers or above
                65,504; the message names the row.
        """
        ids = id_column.normalise(ids, source)
        offsets, terms, weights = np.asarray(offsets, np.int64), np.asarray(terms), np.asarray(weights)
        if len(offsets) != len(ids) + 1 or len(terms) != len(weights):
            raise IndexingError(
                f"{source}: {len(ids)} ids, {len(offsets)} offsets, {len(terms)} terms and {len(weights)} weights do "
                "not belong together: there must be one offset more than ids, and as many terms as weights"
            )
        if offsets[0] != 0 or offsets[-1] != len(terms) or (np.diff(offsets) < 0).any():
            raise IndexingError(f"{source}: offsets must rise from 0 to the number of terms, {len(terms)}")
        if len(terms):
            if terms.dtype.kind not in "iu":
                raise IndexingError(f"{source}: terms are {terms.dtype}; they must be whole numbers")
            _refuse(source, ids, offsets, (terms < 0) | (terms > MAX_TERM), terms, f"a term must be 0 to {MAX_TERM}")
            good = (weights >= 0) & (weights <= _HEAVIEST)  # false for what is no number
            _refuse(source, ids, offsets, ~good, weights, f"a weight must be 0 to {_HEAVIEST:.0f}")
        return cls(ids, offsets, terms.astype(np.uint32), weights.astype(np.float16), source)

    @classmethod
    def from_dense(cls, vectors: object, ids: Sequence | Ids | None = None) -> SparseRows:
        """(N, V) vectors, numpy or torch, as rows of their non-zero terms; ids count from 0 if not given."""
        dense = np.asarray(vectors.detach().float().cpu() if hasattr(vectors, "detach") else vectors)
        row, term = dense.nonzero()
        offsets = np.concatenate([[0], np.bincount(row, minlength=len(dense)).cumsum()])
        return cls.from_arrays(np.arange(len(dense)) if ids is None else ids, offsets, term, dense[row, term])

    @classmethod
    def from_bags(cls, bags: Iterable[Mapping[int, float]], ids: Sequence | Ids | None = None) -> SparseRows:
        """Mappings of term to weight as rows; ids count from 0 if not given.

        Raises:
            IndexingError: as `from_arrays`, and terms that are no whole numbers, whatever their value.
        """
        bags = list(bags)
        offsets = np.concatenate([[0], np.cumsum([len(bag) for bag in bags], dtype=np.int64)])
        terms = np.array([_term(term) for bag in bags for term in bag], np.int64)
        weights = np.array([weight for bag in bags for weight in bag.values()], np.float64)
        return cls.from_arrays(np.arange(len(bags)) if ids is None else ids, offsets, terms, weights)


def _term(term: int) -> int:
    try:
        number = operator.index(term)
    except TypeError as error:
        raise IndexingError(f"a bag holds the term {term!r}; a term must be a whole number") from error
    if not -(2**63) <= number < 2**63:  # nearer ones are refused with the id of their document
        raise IndexingError(f"a bag holds the term {number}; a term must be 0 to {MAX_TERM}")
    return number


def write_shard(path: str | Path, batches: Iterable[SparseRows]) -> None:
    """Write rows as one Arrow file, a record batch each; the file appears when it is complete."""
    path = Path(path)
    draft = path.with_name(path.name + ".tmp")
    writer = None
    with pa.OSFile(str(draft), "wb") as file:
        for rows in batches:
            offsets = pa.array(rows.offsets, pa.int32())
            columns = {
                "id": pa.array(rows.ids),
                "terms": pa.ListArray.from_arrays(offsets, pa.array(rows.terms)),
                "weights": pa.ListArray.from_arrays(offsets, pa.array(rows.weights)),
            }
            batch = pa.record_batch(columns)
            writer = writer or pa.ipc.new_file(file, batch.schema)
            writer.write_batch(batch)
        if writer is None:
            raise IndexingError(f"{path}: no rows to write")
        writer.close()
    draft.replace(path)


def find_shards(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, and of each folder its *.arrow files, sorted.

    Raises:
        IndexingError: a path that does not exist, a folder without shards, or without all shards of a run.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.glob("*.arrow"))
            if not inside:
                raise IndexingError(f"{path} holds no *.arrow files")
            _require_whole_runs(path, inside)
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise IndexingError(f"{path}: no such file or folder")
    return found


def _require_whole_runs(folder: Path, paths: list[Path]) -> None:
    there: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        run = _run_of(path)
        if run is not None:
            there.setdefault((run.id, run.shards), set()).add(run.shard)
    for (_, shards), numbers in there.items():
        if len(numbers) < shards:
            raise IndexingError(
                f"{folder} holds {len(numbers)} of the {shards} shards that lexlip encode writes there; the same "
                "command again goes on with the others"
            )


def _run_of(path: Path) -> Run | None:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            text = (reader.schema.metadata or {}).get(RUN_KEY)
        if text is None:
            return None
        content = json.loads(text)
        return Run(str(content["id"]), int(content["shard"]), int(content["shards"]))
    except pa.ArrowInvalid:
        return None  # reading the rows says so
    except (ValueError, TypeError, KeyError) as error:
        raise IndexingError(f"{path}: its schema says nothing usable of its run ({error})") from error


def read_shards(paths: Iterable[str | Path]) -> Iterator[SparseRows]:
    """The record batches of some shards, one after another; memory is that of one batch.

    Raises:
        IndexingError: no Arrow file, columns missing or of other types, rows that an index cannot take.
    """
    for path in find_shards(paths):
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
                for number in range(reader.num_record_batches):
                    yield _rows(path, reader.get_batch(number))
        except pa.ArrowInvalid as error:
            raise IndexingError(f"{path} is no Arrow IPC file, or cut short: {error}") from error


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
    offsets, terms = lists["terms"]
    other, weights = lists["weights"]
    if not np.array_equal(offsets, other):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(other))[0])
        raise IndexingError(
            f"{path}: id {batch.column('id')[row]} has {offsets[row + 1] - offsets[row]} terms but "
            f"{other[row + 1] - other[row]} weights"
        )
    return SparseRows.from_arrays(batch.column("id"), offsets, terms, weights, str(path))


def _refuse(source: str, ids: Ids, offsets: np.ndarray, bad: np.ndarray, values: np.ndarray, rule: str) -> None:
    if bad.any():
        place = int(bad.argmax())
        row = int(np.searchsorted(offsets, place, "right")) - 1
        raise IndexingError(f"{source}: id {ids[row]} holds {values[place]}; {rule}")
