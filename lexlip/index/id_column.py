"""The ids of a segment's documents, in ascending order: numbers or strings, from document number to id and back.

Numbers take no space where they follow one another, else as many whole bytes as the widest distance from the first
needs. Strings are sorted by their UTF-8 bytes and front-coded in groups of 16: the first of a group in full, each other
as the number of bytes it shares with the one before and the rest.

Documents are numbered in the order of their ids, so the order of documents decides ties and no further table leads
from an id to its document.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import pyarrow as pa

from lexlip.errors import DamagedIndex
from lexlip.index import unpacked
from lexlip.index.check import require
from lexlip.index.container import ContainerReader, ContainerWriter
from lexlip.sparse import Ids, concatenate_ids, kind_of, take_ids
from lexlip.utils.later import Later

pc = Later("pyarrow.compute")
GROUP = 16


def ascending(parts: list[Ids]) -> tuple[Ids, np.ndarray]:
    """The ids of all parts in ascending order, and (N,) int64, the document that each of their rows becomes."""
    ids = concatenate_ids(parts)
    if kind_of(ids) == "int":
        order = np.argsort(ids, kind="stable")
    else:
        order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    documents = np.empty(len(order), np.int64)
    documents[order] = np.arange(len(order))
    return take_ids(ids, order), documents


def repeated(ids: Ids) -> np.ndarray:
    """(N - 1,) bool, whether an ascending id is the same as the next one."""
    if kind_of(ids) == "int":
        return ids[1:] == ids[:-1]
    return pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)


def locate(ids: Ids, among: Ids) -> np.ndarray:
    """(N,) int64, the position of each id in `among`, which ascends; -1 where it does not hold the id."""
    if not len(among) or not len(ids):
        return np.full(len(ids), -1)
    if kind_of(ids) == "int":
        position = np.minimum(np.searchsorted(among, ids), len(among) - 1)
        return np.where(among[position] == ids, position, -1)
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def write(ids: Ids, out: ContainerWriter) -> dict:
    """Write ascending ids as sections of a segment; returns what the footer needs to know."""
    if isinstance(ids, np.ndarray):
        first = int(ids[0]) if len(ids) else 0
        span = int(ids[-1]) - first if len(ids) else 0
        width = 0 if span == max(len(ids) - 1, 0) else (span.bit_length() + 7) // 8
        distance = (ids.view(np.uint64) - np.uint64(first % 2**64)).astype("<u8")
        out.begin("ids", distance.view(np.uint8).reshape(-1, 8)[:, :width])
        return {"kind": "int", "first": first, "width": width}
    from lexlip.index.front_coding import encode

    _, offsets, data = ids.buffers()
    offsets = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1] if len(ids) else np.zeros(1, int)
    data = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    groups, coded = encode(offsets, data, GROUP)
    out.begin("ids", coded)
    out.begin("id_groups", groups.astype("<u8"))
    return {"kind": "string", "group": GROUP}


def read(file: ContainerReader, documents: int, kind: str) -> Numbers | Strings:
    """The ids of a segment's file, as `write` put them there.

    Raises:
        DamagedIndex: ids of another kind, or bytes that are not as many as the documents need.
    """
    file.facts.part("ids").text("kind", (kind,))
    return Numbers(file, documents) if kind == "int" else Strings(file, documents)


class _Column:
    def __init__(self, file: ContainerReader, documents: int):
        self._documents, self._path = documents, file.path
        self._facts = file.facts.part("ids")
        self._data = file.section("ids", check=False)

    def __getitem__(self, document: int) -> Any:
        """The id of a document.

        Raises:
            DamagedIndex: the bytes there are not what was written.
        """
        raise NotImplementedError

    def find(self, id: int | str) -> int | None:
        """The document with an id. Strings compare as their UTF-8 bytes do."""
        document = bisect_left(self, id, 0, self._documents)
        return document if document < self._documents and self[document] == id else None

    def _require(self, good: Any) -> None:
        require(good, self._path, "its ids are damaged")


class Numbers(_Column):
    """Ids that are numbers."""

    def __init__(self, file: ContainerReader, documents: int):
        super().__init__(file, documents)
        self._first = self._facts.whole("first", -(1 << 63))
        self._width = self._facts.whole("width", 0, 8)
        self._most = (1 << 63) - 1 - self._first  # the largest distance
        self._require(len(self._data) == documents * self._width)
        self._require(self._width or documents - 1 <= self._most)

    def __getitem__(self, document: int) -> int:
        if not self._width:
            return self._first + document
        begin = document * self._width
        distance = int.from_bytes(self._data[begin : begin + self._width].tobytes(), "little")
        if distance > self._most:
            self._require(False)
        return self._first + distance

    def all(self) -> np.ndarray:
        """All ids, ascending.

        Raises:
            DamagedIndex: they do not ascend.
        """
        if not self._width:
            return np.arange(self._first, self._first + self._documents, dtype=np.int64)
        wide = np.zeros((self._documents, 8), np.uint8)
        wide[:, : self._width] = self._data.reshape(-1, self._width)
        distance = wide.view("<u8")[:, 0]
        self._require((distance[1:] > distance[:-1]).all() and (not len(distance) or distance[-1] <= self._most))
        return (distance + np.uint64(self._first % 2**64)).astype(np.uint64).view(np.int64)


class Strings(_Column):
    """Ids that are strings. See `Numbers` for the methods."""

    def __init__(self, file: ContainerReader, documents: int):
        super().__init__(file, documents)
        self._facts.whole("group", GROUP, GROUP)
        groups = file.section("id_groups", "<u8")
        self._require(len(groups) == -(-documents // GROUP) + 1)
        self._require(groups[0] == 0 and groups[-1] == len(self._data) and (groups[1:] >= groups[:-1]).all())
        self._groups = groups.astype(np.int64)

    def __getitem__(self, document: int) -> str:
        group, member = divmod(document, GROUP)
        try:
            return self._member(self._groups[group : group + 2], member).decode()
        except UnicodeDecodeError as error:
            raise DamagedIndex(f"{self._path}: its ids are damaged") from error

    def _member(self, groups: np.ndarray, member: int) -> bytes:
        if unpacked.affordable(unpacked.ID * GROUP, call=0):
            found = unpacked.strings(self._data, groups, GROUP, member + 1)
            self._require(found)
            return found[member] if found else b""
        from lexlip.index.front_coding import decode

        offsets, strings, good = decode(self._data, groups, GROUP, member + 1)
        self._require(good)
        return strings[offsets[member] :].tobytes()

    def all(self) -> pa.Array:
        try:
            if unpacked.affordable(unpacked.ID * self._documents):
                found = unpacked.strings(self._data, self._groups, GROUP, self._documents)
                self._require(found is not None)
                return pa.array([id.decode() for id in found or ()], pa.large_string())
            from lexlip.index.front_coding import decode

            offsets, data, good = decode(self._data, self._groups, GROUP, self._documents)
            self._require(good)
            ids = pa.LargeStringArray.from_buffers(self._documents, pa.py_buffer(offsets), pa.py_buffer(data))
            ids.validate(full=True)
            return ids
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            raise DamagedIndex(f"{self._path}: its ids are damaged") from error
