"""What can be encoded: documents 0..len-1, images or texts, each with an id that no other has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

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
