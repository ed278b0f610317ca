"""Sparse rows: ids, terms and weights, the one container that evaluation, encoding and the index share.

The layout is a CSR matrix of N rows and nnz terms in all: row i holds `terms[offsets[i]:offsets[i + 1]]` and the
weights at the same positions. Needs no torch: a tensor is known by its methods.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from lexlip.errors import IndexingError
from lexlip.utils.later import Later

if TYPE_CHECKING:
    from lexlip.index.origin import Origin

pc = Later("pyarrow.compute")
MAX_TERM = 2**22 - 1  # arrays with an entry for every term are held while an index is built
_UNPACKED = 1 << 31  # bytes that texts of a dictionary or of views may grow to
_HEAVIEST = float(np.finfo(np.float16).max)

Ids: TypeAlias = np.ndarray | pa.Array  # (N,) int64, or strings
Rows = TypeVar("Rows", bound="SparseRows")


@dataclass(frozen=True)
class SparseRows:
    """Some documents or queries: their ids, terms and weights.

    The `from_` methods check what they are given and convert it to the types below; whoever calls the constructor
    answers for the arrays.
    """

    ids: Ids  # (N,) int64, or an Arrow array of strings
    offsets: np.ndarray  # (N + 1,) int64, from 0
    terms: np.ndarray  # (nnz,) uint32, in any order within a row, no term twice
    weights: np.ndarray  # (nnz,) float16, above 0
    source: str = "vectors"  # what messages call the rows
    origin: Origin | None = None  # the model that made them and what it encoded, where that is known

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def from_arrays(
        ids: Sequence | Ids, offsets: np.ndarray, terms: np.ndarray, weights: np.ndarray, source: str = "vectors"
    ) -> SparseRows:
        """Rows of arrays of any numeric types. Terms whose weight float16 rounds to 0 are left out.

        Raises:
            IndexingError: lengths that do not fit, terms out of range, weights that are negative, not a number or
                above 65,504; the message names the row.
        """
        ids = as_ids(ids, source)
        offsets = _numbers(offsets, "iu", f"{source}: offsets", "whole numbers").astype(np.int64)
        terms = _numbers(terms, "iu", f"{source}: terms", "whole numbers")
        weights = _numbers(weights, "fiub", f"{source}: weights", "real numbers")
        if len(offsets) != len(ids) + 1 or len(terms) != len(weights):
            raise IndexingError(
                f"{source}: {len(ids)} ids, {len(offsets)} offsets, {len(terms)} terms and {len(weights)} weights do "
                "not belong together: there must be one offset more than ids, and as many terms as weights"
            )
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(terms) or (np.diff(offsets) < 0).any():
            raise IndexingError(f"{source}: offsets must rise from 0 to the number of terms, {len(terms)}")
        if len(terms):
            bad_term = (terms < 0) | (terms > MAX_TERM)
            bad_weight = ~((weights >= 0) & (weights <= _HEAVIEST))  # true for what is not a number
            for bad, values, rule in (
                (bad_term, terms, f"a term must be 0 to {MAX_TERM}"),
                (bad_weight, weights, f"a weight must be 0 to {_HEAVIEST:.0f}"),
            ):
                if bad.any():
                    first = int(bad.argmax())
                    row = int(np.searchsorted(offsets, first, "right")) - 1
                    raise IndexingError(f"{source}: id {ids[row]} holds {values[first]}; {rule}")
        rows = SparseRows(ids, offsets, terms.astype(np.uint32), weights.astype(np.float16), source)
        return rows.select(rows.weights > 0)

    @staticmethod
    def from_dense(vectors: Any, ids: Sequence | Ids | None = None) -> SparseRows:
        """(N, V) vectors, numpy or torch, as rows of their non-zero terms; ids count from 0 if not given."""
        offsets, terms, weights = nonzero_terms(vectors)
        return SparseRows.from_arrays(np.arange(len(offsets) - 1) if ids is None else ids, offsets, terms, weights)

    @staticmethod
    def from_bags(bags: Iterable[Mapping[int, float]], ids: Sequence | Ids | None = None) -> SparseRows:
        """Mappings of term to weight as rows; ids count from 0 if not given.

        Raises:
            IndexingError: as `from_arrays`, and terms that are no whole numbers, whatever their value.
        """
        if isinstance(bags, (str, bytes, Mapping)):
            raise IndexingError("bags come in a list of mappings of term to weight, not as one of them")
        bags = list(bags)
        for bag in bags:
            if not isinstance(bag, Mapping):
                raise IndexingError(f"a bag is a mapping of term to weight, not {type(bag).__name__}")
        terms = np.array([_term(term) for bag in bags for term in bag], np.int64)
        try:
            weights = np.array([weight for bag in bags for weight in bag.values()], np.float64)
        except (TypeError, ValueError) as error:
            raise IndexingError(f"a bag holds a weight that is no number ({error})") from error
        return SparseRows.from_arrays(
            np.arange(len(bags)) if ids is None else ids, offsets_of([len(bag) for bag in bags]), terms, weights
        )

    @classmethod
    def concatenate(cls: type[Rows], parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after another; at least one part, ids of one kind."""
        return replace(
            parts[0],
            ids=concatenate_ids([part.ids for part in parts]),
            offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
            terms=np.concatenate([part.terms for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
        )

    @property
    def rows(self) -> np.ndarray:
        """(nnz,) the row of each term."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def documents(self) -> Iterator[tuple[int | str, np.ndarray, np.ndarray]]:
        """Each row's id, terms and weights."""
        for number, id in enumerate(self.ids.tolist()):
            row = slice(self.offsets[number], self.offsets[number + 1])
            yield id, self.terms[row], self.weights[row]

    def between(self: Rows, start: int, stop: int) -> Rows:
        """Rows start to stop - 1, as views."""
        first, last = self.offsets[start], self.offsets[stop]
        return replace(
            self, ids=self.ids[start:stop], offsets=self.offsets[start : stop + 1] - first,
            terms=self.terms[first:last], weights=self.weights[first:last],
        )  # fmt: skip

    def take(self: Rows, rows: np.ndarray) -> Rows:
        """These rows, in this order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = offsets_of(lengths)
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self, ids=take_ids(self.ids, rows), offsets=offsets, terms=self.terms[source], weights=self.weights[source]
        )

    def select(self: Rows, used: np.ndarray) -> Rows:
        """The terms where `used` (nnz,) is true; every row stays, possibly without terms."""
        if used.all():
            return self
        offsets = offsets_of(np.bincount(self.rows[used], minlength=len(self)))
        return replace(self, offsets=offsets, terms=self.terms[used], weights=self.weights[used])

    def top_k(self: Rows, k: int) -> Rows:
        """Each row's k heaviest terms, weights unchanged; of equal weights the ones that come first in the row.

        What is not a number counts as heaviest, so that a broken vector stays one.
        """
        used = np.ones(len(self.terms), bool)
        weights = np.where(np.isnan(self.weights), np.inf, self.weights)
        for row in np.flatnonzero(np.diff(self.offsets) > k):
            of_row = slice(self.offsets[row], self.offsets[row + 1])
            lightest = np.partition(weights[of_row], -k)[-k]
            heavier, equal = weights[of_row] > lightest, weights[of_row] == lightest
            used[of_row] = heavier | (equal & (equal.cumsum() <= k - heavier.sum()))
        return self.select(used)

    def at_length_one(self: Rows) -> Rows:
        """Each row divided by its L2 norm; rows without terms stay."""
        norms = np.sqrt(np.bincount(self.rows, self.weights.astype(np.float64) ** 2, minlength=len(self)))
        return replace(self, weights=(self.weights / np.maximum(norms, 1e-12)[self.rows]).astype(self.weights.dtype))


def nonzero_terms(vectors: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, terms and weights of (N, V) vectors; the zeros of a tensor stay on its device.

    Args:
        vectors: numpy or torch, of any real type; tensors and scipy's matrices may be sparse.

    Raises:
        IndexingError: another shape or type.
    """
    if hasattr(vectors, "tocsr"):  # scipy
        _require_table(vectors, vectors.dtype.kind not in "fiub")
        vectors = vectors.tocsr(copy=True)
        vectors.sum_duplicates()
        return _sparse_terms(vectors, vectors.tocoo().row, vectors.indices, vectors.data)
    if hasattr(vectors, "detach"):
        _require_table(vectors, vectors.is_complex())
        vectors = vectors.detach().float()
        if str(vectors.layout) != "torch.strided":
            vectors = vectors.to_sparse_coo().coalesce().cpu()
            row, term = vectors.indices().numpy()
            return _sparse_terms(vectors, row, term, vectors.values().numpy())
        row, term = vectors.nonzero(as_tuple=True)
        lengths = row.bincount(minlength=len(vectors)).cpu().numpy()
        return offsets_of(lengths), term.int().cpu().numpy(), vectors[row, term].cpu().numpy()
    try:
        vectors = np.asarray(vectors)
    except ValueError as error:  # rows of several lengths
        raise IndexingError("vectors must be a table of N rows and V columns") from error
    _require_table(vectors, vectors.dtype.kind not in "fiub")
    row, term = vectors.nonzero()
    return offsets_of(np.bincount(row, minlength=len(vectors))), term, vectors[row, term]


def _require_table(vectors: Any, other_type: bool) -> None:
    if vectors.ndim != 2:
        raise IndexingError(
            f"vectors have the shape {tuple(vectors.shape)}; they must be (N, V): vectors[None] makes one row of (V,)"
        )
    if other_type:
        raise IndexingError(f"vectors are {vectors.dtype}; they must be real numbers")


def _sparse_terms(
    vectors: Any, row: np.ndarray, term: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of coordinates in the order of their rows, without stored zeros."""
    used = weights != 0
    return offsets_of(np.bincount(row[used], minlength=vectors.shape[0])), term[used], weights[used]


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N + 1,) int64, where rows of these lengths begin, and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _term(term: int) -> int:
    try:
        number = operator.index(term)
    except TypeError as error:
        raise IndexingError(f"a bag holds the term {term!r}; a term must be a whole number") from error
    if not -(2**63) <= number < 2**63:  # smaller ones are refused with the id of their document
        raise IndexingError(f"a bag holds the term {number}; a term must be 0 to {MAX_TERM}")
    return number


def _numbers(values: Any, kinds: str, name: str, rule: str) -> np.ndarray:
    """A 1-D array of numbers of some kinds; an empty one may be of any."""
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError, RuntimeError) as error:  # several lengths; a type that numpy lacks
        raise IndexingError(f"{name} are {type(values).__name__}; they must be {rule} in a row") from error
    if array.ndim != 1:
        raise IndexingError(f"{name} have the shape {array.shape}; they must be {rule} in a row")
    if array.size and array.dtype.kind not in kinds:
        raise IndexingError(f"{name} are {array.dtype}; they must be {rule}")
    return array


def kind_of(ids: Ids) -> str:
    """ "int" or "string"."""
    return "int" if isinstance(ids, np.ndarray) else "string"


def as_ids(ids: Sequence[int] | Sequence[str] | Ids, source: str = "ids") -> Ids:
    """Ids as int64 or as an Arrow array of strings.

    Raises:
        IndexingError: anything else, one id instead of a list, a missing id, or numbers that do not fit.
    """
    array: Any = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if isinstance(ids, (str, bytes, int, float, Mapping)):
        raise IndexingError(f"{source}: ids come in a list, such as [{ids!r}], not as {type(ids).__name__}")
    if not isinstance(array, pa.Array):
        try:
            array = np.asarray(array.detach().cpu()) if hasattr(array, "detach") else array
            array = pa.array(array if isinstance(array, np.ndarray) and array.dtype.kind in "iu" else list(array))
        except UnicodeEncodeError as error:
            raise IndexingError(f"{source}: id {str(error.object)!r} is no text that UTF-8 can hold") from error
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise IndexingError(f"{source}: ids must all be whole numbers of 64 bits or all be strings") from error
    if array.null_count:
        raise IndexingError(f"{source}: row {pc.index(array.is_null(), True).as_py()} has no id")
    array = plain_array(array, source)
    if array.null_count:  # a dictionary may hold one
        raise IndexingError(f"{source}: row {pc.index(array.is_null(), True).as_py()} has no id")
    if pa.types.is_null(array.type):
        return np.empty(0, np.int64)
    if pa.types.is_integer(array.type):
        try:
            return array.cast(pa.int64()).to_numpy().copy()
        except pa.ArrowInvalid as error:
            raise IndexingError(f"{source}: id {pc.max(array)} does not fit into 64 bits with a sign") from error
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise IndexingError(f"{source}: ids are {array.type}; they must be whole numbers or strings")
    return array.cast(pa.large_string())


def plain_array(array: pa.Array, source: str = "ids") -> pa.Array:
    """An array of a plain type: dictionaries, run ends and views of text unpacked.

    Raises:
        IndexingError: its values share so many bytes that they would take more than 2 GiB.
    """
    if pa.types.is_dictionary(array.type):
        values = plain_array(array.dictionary, source)
        if _text_bytes(values) * len(array) > _UNPACKED:  # else no row can be too long
            lengths = pc.binary_length(values).take(array.indices)
            _require_short(pc.sum(lengths).as_py() or 0, source)
        return values.take(array.indices)
    if pa.types.is_run_end_encoded(array.type):
        if len(array) * max(_text_bytes(plain_array(array.values, source)), 8) > _UNPACKED:
            raise IndexingError(f"{source}: run-end encoded values that would take too much memory; write them plainly")
        return plain_array(pc.run_end_decode(array), source)
    if str(array.type) in ("string_view", "binary_view"):
        # 16 bytes a value, of which the first four are its length.
        lengths = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4][: len(array)]
        _require_short(int(lengths.sum(dtype=np.int64)), source)
        return array.cast(pa.large_string() if str(array.type) == "string_view" else pa.large_binary())
    return array


def _text_bytes(array: pa.Array) -> int:
    """Bytes of all texts, 0 for other values."""
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(is_kind(array.type) for is_kind in kinds):
        return 0
    return pc.sum(pc.binary_length(array)).as_py() or 0


def _require_short(length: int, source: str) -> None:
    if length > _UNPACKED:
        raise IndexingError(f"{source}: texts that share bytes would take {length:,} of them; write fewer rows")


def concatenate_ids(parts: Sequence[Ids]) -> Ids:
    """All ids of several parts of one kind."""
    return np.concatenate(parts) if kind_of(parts[0]) == "int" else pa.concat_arrays(parts)


def take_ids(ids: Ids, rows: np.ndarray) -> Ids:
    """The ids of some rows."""
    return ids[rows] if kind_of(ids) == "int" else ids.take(pa.array(rows))
