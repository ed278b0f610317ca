"""The Common Index File Format (Lin et al., SIGIR 2020), which Lucene, PISA, JASS and others exchange indexes by.

One file of protocol-buffer messages, each after its length: a header, a list of postings per term, in the order of the
terms' names, and a record per document. Messages are written here by hand, field by field, because their fields are
few and the postings many.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lexlip.index.codec import decode
from lexlip.index.compiled import compiled
from lexlip.index.export.integers import impacts
from lexlip.index.index import Index
from lexlip.index.layout import COUNT
from lexlip.index.segment import Segment

_VARINT, _DOUBLE, _BYTES = 0, 1, 2  # wire types
_MAX_POSTING = 2 + 2 + 5 + 5  # tag and length, two tags, two numbers of 7-bit groups


def write(index: Index, path: Path, scale: int) -> None:
    """Write all documents that are not deleted, numbered in the index's order; impacts as term frequencies.

    Memory is that of a list of postings and of the ids.
    """
    places = [_place(index, number) for number in range(len(index.segments))]
    lengths = np.zeros(len(index), np.int64)
    body = path.with_suffix(".lists")
    lists = 0
    with open(body, "wb") as file:
        for name, documents, counts in _lists(index, places, scale):
            lengths[documents] += counts
            gaps = np.diff(documents, prepend=0)
            postings = np.empty(len(gaps) * _MAX_POSTING, np.uint8)
            size = _encode(gaps, counts, postings)
            head = _field(1, name.encode()) + _field(2, len(gaps)) + _field(3, int(counts.sum()))
            _message(file, head, postings[:size])
            lists += 1
        for number, (id, length) in enumerate(zip(_ids(index), lengths.tolist())):
            _message(file, _field(1, number) + _field(2, str(id).encode()) + _field(3, length))
    total = int(lengths.sum())
    facts = (1, lists, len(index), lists, len(index), total, total / max(len(index), 1))
    header = b"".join(_field(number, fact) for number, fact in enumerate(facts, 1))
    header += _field(8, f"lexicon vectors, impacts are weights x {scale}".encode())
    with open(path, "wb") as file:
        _message(file, header)
        with open(body, "rb") as rest:
            shutil.copyfileobj(rest, file, 1 << 20)
    body.unlink()


def _place(index: Index, number: int) -> np.ndarray:
    """The number that each of a segment's documents gets in the file, -1 for deleted ones."""
    before = sum(int(segment.alive().sum()) for segment in index.segments[:number])
    alive = index.segments[number].alive()
    return np.where(alive, before + alive.cumsum() - 1, -1)


def _ids(index: Index) -> Iterator[int | str]:
    for segment in index.segments:
        alive = segment.alive()
        yield from (id for id, used in zip(segment.all_ids().tolist(), alive.tolist()) if used)


def _lists(index: Index, places: list[np.ndarray], scale: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A term's name, its documents ascending and their impacts, without those that are rounded to 0."""
    terms = np.unique(np.concatenate([np.empty(0, np.uint32), *(segment.terms for segment in index.segments)]))
    for name in sorted(map(str, terms.tolist())):
        documents, counts = [], []
        for segment, place in zip(index.segments, places):
            found, weights = _postings(segment, int(name))
            number, whole = place[found], impacts(weights, scale)
            used = (number >= 0) & (whole > 0)
            documents.append(number[used])
            counts.append(whole[used])
        together = np.concatenate(documents)
        if len(together):
            yield name, together, np.concatenate(counts)


def _postings(segment: Segment, term: int) -> tuple[np.ndarray, np.ndarray]:
    row = np.searchsorted(segment.terms, term)
    if row == len(segment.terms) or segment.terms[row] != term:
        return np.empty(0, np.int64), np.empty(0, np.float16)
    count = segment.table[row, COUNT]
    documents, codes = np.empty(count, np.int64), np.empty(count, np.int64)
    decode(segment.data, segment.table[row], segment.bits, documents, codes)
    return documents, segment.impacts[codes].astype(np.float16)


def _message(file: BinaryIO, *parts: bytes | np.ndarray) -> None:
    file.write(_varint(sum(map(len, parts))))
    for part in parts:
        file.write(part)


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | _DOUBLE) + struct.pack("<d", value)
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@compiled
def _encode(gaps, counts, out):
    """Postings as field 4 of a list: messages of two numbers. Returns how many bytes."""
    place = 0
    for i in range(len(gaps)):
        begin = place + 2  # a posting has at most 12 bytes, so its length takes one
        end = _number(out, begin, 1 << 3, gaps[i])
        end = _number(out, end, 2 << 3, counts[i])
        out[place], out[place + 1] = 4 << 3 | 2, end - begin
        place = end
    return place


@compiled
def _number(out, place, tag, value):
    out[place] = tag
    place += 1
    while value > 0x7F:
        out[place] = value & 0x7F | 0x80
        value >>= 7
        place += 1
    out[place] = value
    return place + 1
