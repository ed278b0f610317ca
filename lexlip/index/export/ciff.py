"""The Common Index File Format (Lin et al., SIGIR 2020), which Lucene, PISA, JASS and others exchange indexes by.

One file of protocol-buffer messages, each after its length: a header, a list of postings per term, in the order of the
terms' names, and a record per document. Messages are written here by hand, field by field, because their fields are
few and the postings many.
"""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lexlip.index.compiled import compiled
from lexlip.index.export.integers import impacts
from lexlip.index.front_coding import put_number
from lexlip.index.index import Index
from lexlip.index.runs import DecodedSegment
from lexlip.sparse import take_ids

_VARINT, _DOUBLE, _BYTES = 0, 1, 2  # wire types
_MAX_POSTING = 2 + 2 + 5 + 5  # tag and length, two tags, two numbers of 7-bit groups


def write(index: Index, path: Path, scale: int) -> None:
    """Write all documents that are not deleted, numbered in the index's order; impacts as term frequencies.

    Memory is that of a list of postings and of the ids.
    """
    lengths = np.zeros(len(index), np.int64)
    body = path.with_suffix(".lists")
    lists = 0
    with open(body, "wb") as file:
        for name, documents, counts in _lists(index, scale):
            lengths[documents] += counts
            gaps = np.diff(documents, prepend=0)
            postings = np.empty(len(gaps) * _MAX_POSTING, np.uint8)
            size = _encode(gaps, counts, postings)
            head = _field(1, name.encode()) + _field(2, len(gaps)) + _field(3, int(counts.sum()))
            _message(file, head, postings[:size])
            lists += 1
        live = (take_ids(segment.all_ids(), np.flatnonzero(segment.alive())) for segment in index.segments)
        ids = (id for part in live for id in part.tolist())
        for number, (id, length) in enumerate(zip(ids, lengths.tolist())):
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


def _lists(index: Index, scale: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A term's name, its documents ascending and their impacts, without those that are rounded to 0."""
    sources, before = [], 0
    for segment in index.segments:
        alive = segment.alive()
        sources.append(DecodedSegment(segment, np.where(alive, before + alive.cumsum() - 1, -1)))
        before += int(alive.sum())
    terms = {term for segment in index.segments for term in segment.terms.tolist()}
    for name in sorted(map(str, terms)):
        lists = [source.postings(int(name), int(name) + 1) for source in sources]
        numbers = [source.documents[keys >> np.uint64(16)] for source, keys in zip(sources, lists)]
        documents = np.concatenate(numbers)
        whole = impacts(np.concatenate(lists).astype(np.uint16).view(np.float16), scale)
        used = (documents >= 0) & (whole > 0)
        if used.any():
            yield name, documents[used], whole[used]


def _message(file: BinaryIO, *parts: bytes | np.ndarray) -> None:
    file.write(_varint(sum(map(len, parts))))
    for part in parts:
        file.write(part if isinstance(part, bytes) else part.data)


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
        out[begin] = 1 << 3
        end = put_number(out, begin + 1, gaps[i])
        out[end] = 2 << 3
        end = put_number(out, end + 1, counts[i])
        out[place], out[place + 1] = 4 << 3 | 2, end - begin
        place = end
    return place
