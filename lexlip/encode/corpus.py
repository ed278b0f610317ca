"""What can be encoded: documents 0..len-1, images or texts, each with an id that no other has."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from lexlip_data.sources.skipped import Skipped


class Corpus(Protocol):
    """What images and texts have in common."""

    what: str  # "images" or "texts"
    ids: str  # of the shards' id column: "int" or "string"
    origin: str  # its file or folder, for messages
    left_out: list[Skipped]  # rows of its file that are no documents; they are listed in the output folder
    notes: list[str]  # what else was left out, a line for each kind of it

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Differs when documents were added, removed or renamed; what images show is not looked at."""


class Ordered(Corpus, Protocol):
    """A corpus whose documents stay where they are while it grows at its end: lines, rows of a table."""

    def marks(self) -> np.ndarray:
        """(documents, 2) uint32 checksums: of what a document is called, and of what of its content costs no time."""


class Images(Corpus, Protocol):
    """Images, read in any order by any number of processes; pickled for those."""

    def image(self, i: int) -> tuple[str, bytes | memoryview]:
        """Id and encoded bytes. Raises BrokenSample if either cannot be read."""

    def name(self, i: int) -> str:
        """What to call an image that is left out: its id, or file and row."""


class Texts(Corpus, Protocol):
    """Texts, read in order."""

    def read(self, start: int, stop: int) -> Iterator[tuple[int | str, str] | Skipped]:
        """Id and text of documents start to stop - 1, or why there is none."""


class Part:
    """Documents start to stop - 1 of an ordered corpus, as a corpus. See `Images` and `Texts` for the methods.

    Args:
        marks: of the whole corpus.
    """

    def __init__(self, corpus: Any, start: int, stop: int, marks: np.ndarray):
        self._corpus, self._start, self._stop, self._marks = corpus, start, stop, marks[start:stop]
        self.what, self.ids, self.origin = corpus.what, corpus.ids, corpus.origin
        self.left_out, self.notes = corpus.left_out, corpus.notes

    def __len__(self) -> int:
        return self._stop - self._start

    def fingerprint(self) -> str:
        return hashlib.blake2b(self._marks.tobytes(), digest_size=16).hexdigest()

    def image(self, i: int) -> tuple[str, bytes | memoryview]:
        return self._corpus.image(self._start + i)

    def name(self, i: int) -> str:
        return self._corpus.name(self._start + i)

    def read(self, start: int, stop: int) -> Iterator[tuple[int | str, str] | Skipped]:
        return self._corpus.read(self._start + start, self._start + stop)


def mark(*texts: str) -> list[int]:
    """The checksum of each text."""
    return [zlib.crc32(text.encode(errors="surrogatepass")) for text in texts]
