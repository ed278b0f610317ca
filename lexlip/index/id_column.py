"""The ids of a segment's documents, in ascending order: numbers or strings, from document number to id and back.

Numbers take no space where they follow one another, else as many whole bytes as the widest distance from the first
needs. Strings are sorted by their UTF-8 bytes and front-coded in groups of 16: the first of a group in full, each other
as the number of bytes it shares with the one before and the rest.

Documents are numbered in the order of their ids, so the order of documents decides ties and no further table leads
from an id to its document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip.errors import IndexingError
from lexlip.index.container import Reader, Writer

GROUP = 16
Ids = np.ndarray | pa.Array  # (N,) int64, or strings


class IdColumn(Protocol):
    """What a segment asks of its ids."""

    def __getitem__(self, document: int) -> int | str:
        """The id of a document."""

    def find(self, id: int | str) -> int | None:
        """The document with an id."""

    def all(self) -> Ids:
        """All ids, ascending."""


def kind_of(ids: Ids) -> str:
    """ "int" or "string"."""
    return "int" if isinstance(ids, np.ndarray) else "string"


def normalise(ids: Sequence[int] | Sequence[str] | Ids, source: str = "ids") -> Ids:
    """Ids as int64 or as an Arrow array of strings.

    Raises:
        IndexingError: anything else, a missing id, or numbers that do not fit.
    """
    if not isinstance(ids, (pa.Array, pa.ChunkedArray, np.ndarray)):
        ids = list(ids)
        try:
            ids = pa.array(ids)
        except UnicodeEncodeError as error:
            raise IndexingError(f"{source}: id {error.object!r} is no text that UTF-8 can hold") from error
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise IndexingError(f"{source}: ids must all be whole numbers of 64 bits or all be strings") from error
    if isinstance(ids, np.ndarray):
        if not len(ids):
            return np.empty(0, np.int64)
        if ids.dtype.kind not in "iu":
            return normalise(ids.tolist(), source)
        if ids.dtype.kind == "u" and ids.max() > np.iinfo(np.int64).max:
            raise IndexingError(f"{source}: id {ids.max()} does not fit into 64 bits with a sign")
        return ids.astype(np.int64)
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if ids.null_count:
        raise IndexingError(f"{source}: row {pc.index(ids.is_null(), True).as_py()} has no id")
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_integer(ids.type):
        return normalise(ids.to_numpy(zero_copy_only=False), source)
    if pa.types.is_null(ids.type):
        return np.empty(0, np.int64)
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise IndexingError(f"{source}: ids are {ids.type}; they must be whole numbers or strings")
    return ids.cast(pa.large_string())


def concatenate(parts: list[Ids]) -> Ids:
    """All ids of several parts of one kind."""
    return np.concatenate(parts) if kind_of(parts[0]) == "int" else pa.concat_arrays(parts)


def order(ids: Ids) -> np.ndarray:
    """(N,) int64, the rows in ascending order of their ids; equal ids stay in the order of their rows."""
    if kind_of(ids) == "int":
        return np.argsort(ids, kind="stable")
    return pc.sort_indices(ids).to_numpy().astype(np.int64)


def take(ids: Ids, rows: np.ndarray) -> Ids:
    """The ids of some rows."""
    return ids[rows] if kind_of(ids) == "int" else ids.take(pa.array(rows))


def repeated(ids: Ids) -> np.ndarray:
    """Of ascending ids, the places that hold the same id as the next place."""
    if len(ids) < 2:
        return np.empty(0, np.int64)
    same = ids[1:] == ids[:-1] if kind_of(ids) == "int" else pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(same)


def locate(ids: Ids, among: Ids) -> np.ndarray:
    """(N,) int64, the place in `among` of each id, -1 where it is not there. Both of one kind, `among` ascending."""
    if not len(among) or not len(ids):
        return np.full(len(ids), -1)
    if kind_of(ids) == "int":
        place = np.minimum(np.searchsorted(among, ids), len(among) - 1)
        return np.where(among[place] == ids, place, -1)
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def write(ids: Ids, out: Writer) -> dict:
    """Write ascending ids as sections of a segment; returns what the footer needs to know."""
    if kind_of(ids) == "int":
        first = int(ids[0]) if len(ids) else 0
        span = int(ids[-1]) - first if len(ids) else 0
        width = 0 if span == max(len(ids) - 1, 0) else (span.bit_length() + 7) // 8
        out.begin("ids")
        if width:
            distance = (ids.view(np.uint64) - np.uint64(first % 2**64)).astype("<u8")
            out.write(distance.view(np.uint8).reshape(-1, 8)[:, :width])
        return {"kind": "int", "first": first, "width": width}
    from lexlip.index.front_coding import encode

    offsets, data = _buffers(ids)
    groups, coded = encode(offsets, data, GROUP)
    out.begin("ids")
    out.write(coded)
    out.begin("id_groups")
    out.write(groups.astype("<u8"))
    return {"kind": "string", "group": GROUP}


def read(file: Reader, documents: int) -> IdColumn:
    """The ids of a segment's file, as `write` put them there."""
    facts = file.footer["ids"]
    if facts["kind"] == "int":
        return _Numbers(file.section("ids", check=False), facts["first"], facts["width"], documents)
    groups = file.section("id_groups", "<u8")
    return _Strings(file.section("ids", check=False), groups, facts["group"], documents)


class _Numbers:
    def __init__(self, data: np.ndarray, first: int, width: int, documents: int):
        self._data, self._first, self._width, self._documents = data, first, width, documents

    def __getitem__(self, document: int) -> int:
        begin = document * self._width
        return self._first + (
            int.from_bytes(self._data[begin : begin + self._width].tobytes(), "little") if self._width else document
        )

    def find(self, id: int) -> int | None:
        low, high = 0, self._documents
        while low < high:
            middle = (low + high) // 2
            if self[middle] < id:
                low = middle + 1
            else:
                high = middle
        return low if low < self._documents and self[low] == id else None

    def all(self) -> np.ndarray:
        if not self._width:
            return np.arange(self._first, self._first + self._documents, dtype=np.int64)
        wide = np.zeros((self._documents, 8), np.uint8)
        wide[:, : self._width] = self._data.reshape(-1, self._width)
        return (wide.view("<u8")[:, 0] + np.uint64(self._first % 2**64)).astype(np.uint64).view(np.int64)


class _Strings:
    def __init__(self, data: np.ndarray, groups: np.ndarray, group: int, documents: int):
        self._data, self._groups, self._group, self._documents = data, groups, group, documents

    def __getitem__(self, document: int) -> str:
        group, place = divmod(document, self._group)
        # Damaged bytes may be no UTF-8; a wrong id is what `verify` is there to find.
        return self._strings(group, place + 1)[-1].decode(errors="replace")

    def find(self, id: str) -> int | None:
        wanted = id.encode(errors="surrogatepass")  # equal to no stored id where it is no text
        low, high = 0, len(self._groups) - 1  # groups; the last entry is the end of the last one
        while high - low > 1:
            middle = (low + high) // 2
            if self._strings(middle, 1)[0] <= wanted:
                low = middle
            else:
                high = middle
        if high == 0:
            return None
        members = self._strings(low, min(self._group, self._documents - low * self._group))
        return low * self._group + members.index(wanted) if wanted in members else None

    def all(self) -> pa.Array:
        from lexlip.index.front_coding import decode

        offsets, data = decode(self._data, self._groups.astype(np.int64), self._group, self._documents)
        return pa.LargeStringArray.from_buffers(self._documents, pa.py_buffer(offsets), pa.py_buffer(data))

    def _strings(self, group: int, count: int) -> list[bytes]:
        """The first ids of a group."""
        data = self._data[self._groups[group] : self._groups[group + 1]].tobytes()
        found, place, before = [], 0, b""
        for member in range(count):
            shared = 0
            if member:
                shared, place = _number(data, place)
            rest, place = _number(data, place)
            before = before[:shared] + data[place : place + rest]
            place += rest
            found.append(before)
        return found


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of 7 bits, lowest first, the eighth bit set on all but the last; and where it ends."""
    value = shift = 0
    while place < len(data):
        value |= (data[place] & 0x7F) << shift
        shift += 7
        place += 1
        if data[place - 1] < 0x80:
            break
    return value, place


def _buffers(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and bytes of an array of strings."""
    _, offsets, data = ids.buffers()
    offsets = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1] if len(ids) else np.zeros(1, int)
    return offsets, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
