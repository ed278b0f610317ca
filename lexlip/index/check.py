"""What decoding relies on, stated once: a checksum tells accidents, not whether a stranger wrote what it covers.

    opening a segment     JSON: names, types and ranges; sections inside the file; the table of lists against the bytes;
                          codebook, occurrences, deletions, width or groups of the ids; a few megabytes are looked at
    first use of a list   its postings: as many as the table says, documents below `documents`, codes, skips
    reading an id         its group of 16; reading all ids: strictly ascending, and UTF-8
    verify, merge, export all of it

What passes here is safe to decode without another test. What does not is a `DamagedIndex` that names the file.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from lexlip.errors import DamagedIndex
from lexlip.index.layout import BEGIN, COLUMNS, COUNT, END, LOW, MAX_LOW_BITS, PADDING, SKIP_EVERY, SKIPS, TOP
from lexlip.sparse import MAX_TERM

MAX_DOCUMENTS = 1 << MAX_LOW_BITS
# Documents without a term cost no byte: of a segment at most so many, or a short file could ask for gigabytes.
MAX_EMPTY = 1 << 22
MAX_JSON = 1 << 26  # bytes; a segment takes some 300 of the manifest
_MOST_OCCURRENCES = 1 << 53
_INT64 = -(1 << 63), (1 << 63) - 1
LIST_COLUMNS = (("<u4", "gap"), ("<u4", "count"), ("<u4", "bytes"), ("u1", "low"), ("<u2", "top"))
_LIST_BYTES = sum(np.dtype(dtype).itemsize for dtype, _ in LIST_COLUMNS)


def require(good: Any, place: Any, what: str) -> None:
    """Raises DamagedIndex, "place: what", unless it is good."""
    if not good:
        raise DamagedIndex(f"{place}: {what}")


@dataclass(frozen=True)
class Facts:
    """A JSON object of a file; its values are checked when they are taken.

    Attributes:
        values: by name.
        place: the file, for messages.
    """

    values: dict
    place: str

    @staticmethod
    def parse(encoded: bytes, place: object) -> Facts:
        """The object in some bytes.

        Raises:
            DamagedIndex: they are no JSON object.
        """
        require(len(encoded) <= MAX_JSON, place, f"{len(encoded):,} bytes of JSON")
        try:
            value = json.loads(encoded.decode(), parse_constant=float)
        except (ValueError, RecursionError) as error:
            raise DamagedIndex(f"{place}: no JSON that can be read") from error
        require(isinstance(value, dict), place, "its JSON is no object")
        return Facts(value, str(place))

    def whole(self, name: str, low: int = 0, high: int = _INT64[1]) -> int:
        """A whole number from low to high."""
        value = self.values.get(name)
        good = type(value) is int and low <= value <= high
        require(good, self.place, f"{name} is {_short(value)}, no whole number from {low} to {high}")
        return value  # type: ignore[return-value]

    def number(self, name: str) -> float:
        """A number of at least 0, not infinite."""
        value: Any = self.values.get(name)
        good = type(value) in (int, float) and 0 <= value <= 1e300 and math.isfinite(value)
        require(good, self.place, f"{name} is {_short(value)}, no number of at least 0")
        return float(value)

    def text(self, name: str, allowed: tuple[str, ...] = ()) -> str:
        """A text, one of those allowed if there are any."""
        value = self.values.get(name)
        good = isinstance(value, str) and (not allowed or value in allowed)
        require(good, self.place, f"{name} is {_short(value)}, not {' or '.join(map(repr, allowed)) or 'a text'}")
        return value  # type: ignore[return-value]

    def part(self, name: str) -> Facts:
        """An object inside."""
        value = self.values.get(name)
        require(isinstance(value, dict), self.place, f"{name} is {_short(value)}, no object")
        return Facts(value, self.place)  # type: ignore[arg-type]

    def parts(self, name: str) -> list[Facts]:
        """A list of objects."""
        value = self.values.get(name, [])
        good = isinstance(value, list) and all(isinstance(item, dict) for item in value)
        require(good, self.place, f"{name} is no list of objects")
        return [Facts(item, self.place) for item in value]


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints
        text = type(value).__name__
    return text if len(text) <= 40 else f"{text[:40]}..."


def lists(data: np.ndarray, packed: np.ndarray, number: int, bits: int, documents: int, skips: int, place: object):
    """The terms and the table of lists, from the section `lists`.

    Args:
        data: the section of postings, with its padding.
        packed: the section of lists.
        number: of lists.
        bits: of an impact.
        documents: of the segment.
        skips: rows of the section of skips.

    Returns:
        (L,) uint32 terms and (L, 6) int64, as `lexlip.index.layout` has it.

    Raises:
        DamagedIndex: a table by which decoding could leave the postings, the skips or the impacts.
    """
    # A list has at least a byte of fields and a byte of unary part: no table is out of proportion to its file.
    require(len(data) >= PADDING and 2 * number <= len(data), place, f"{number:,} lists do not fit its postings")
    columns = inflate(packed, number * _LIST_BYTES, place)
    values, begin = {}, 0
    for dtype, name in LIST_COLUMNS:
        values[name] = np.frombuffer(columns, dtype, number, begin).astype(np.int64)
        begin += number * np.dtype(dtype).itemsize
    table = np.zeros((number, COLUMNS), np.int64)
    table[:, END] = values["bytes"].cumsum()
    table[:, BEGIN] = table[:, END] - values["bytes"]
    table[:, COUNT], table[:, LOW], table[:, TOP] = values["count"], values["low"], values["top"]
    skipped = (values["count"] - 1) // SKIP_EVERY
    table[:, SKIPS] = skipped.cumsum() - skipped
    terms = values["gap"].cumsum() - 1
    require((values["gap"] > 0).all(), place, "its terms do not ascend")
    require(not number or terms[-1] <= MAX_TERM, place, f"a term above {MAX_TERM:,}")
    count, low = values["count"], values["low"]
    fields = (count * (low + bits) + 7) // 8
    good = (
        (table[-1, END] if number else 0) == len(data) - PADDING
        and ((count > 0) & (count <= documents)).all()
        and (low <= MAX_LOW_BITS).all()
        and (table[:, BEGIN] + fields + (count + 7) // 8 <= table[:, END]).all()
        and (values["top"] < 1 << bits).all()
        and skipped.sum() == skips
    )
    require(good, place, "its lists do not fit its postings")
    require(documents <= int(count.sum()) + MAX_EMPTY, place, f"more than {MAX_EMPTY:,} documents without a term")
    return terms.astype(np.uint32), table


def inflate(packed: np.ndarray, length: int, place: object) -> bytes:
    """Undo zlib, into no more memory than it is to take.

    Raises:
        DamagedIndex: no such stream, or of another length.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.data, length + 1)
    except zlib.error as error:
        raise DamagedIndex(f"{place}: its table of lists is no zlib stream") from error
    good = len(data) == length and stream.eof and not stream.unused_data
    require(good, place, f"its table of lists has another length than {length:,} bytes")
    return data


def impacts(stored: np.ndarray, bits: int, used: bool, place: object) -> np.ndarray:
    """(2^bits,) float64 of the section of impacts; finite, ascending, above 0 where a list uses them."""
    require(len(stored) == 1 << bits, place, f"{len(stored):,} impacts for {bits} bits")
    values = stored.astype(np.float64)
    good = np.isfinite(values).all() and (np.diff(values) >= 0).all() and values[0] >= 0
    require(good and (values[0] > 0 or not used), place, "its impacts are no codebook")
    return values


def occurrences(stored: np.ndarray, bits: int, place: object) -> np.ndarray:
    """(2^bits,) int64 of the section of occurrences."""
    good = len(stored) == 1 << bits and (stored <= _MOST_OCCURRENCES).all()
    require(good, place, "its occurrences do not fit its impacts")
    return stored.astype(np.int64)


def deletions(bitmap: np.ndarray, documents: int, deleted: int, place: object) -> None:
    """The bitmap of deletions against the number of documents and what the manifest says."""
    good = len(bitmap) == (documents + 7) // 8 and (documents % 8 == 0 or not bitmap[-1] >> (documents % 8))
    require(good, place, f"it does not belong to a segment of {documents:,} documents")
    count = int(np.unpackbits(bitmap).sum())
    require(count == deleted, place, f"{count:,} documents are deleted, not {deleted:,}")
