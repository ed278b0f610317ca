"""What every engine that keeps lexicon vectors offers, so that the same vectors and queries run on any of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from lexlip.index.index import Hit, Index
from lexlip.index.queries import Bag
from lexlip.index.unpacked import prefer_compiled
from lexlip.index.writer import build
from lexlip.sparse import SparseRows


class Engine(Protocol):
    """An engine over one folder or address.

    Attributes:
        name: for tables.
    """

    name: str

    def build(self, batches: Iterable[SparseRows]) -> None:
        """Take all documents; what was there is gone."""

    def search(self, query: Bag, k: int) -> list[Hit]:
        """The k best documents by dot product, best first."""
        return self.search_batch([query], k)[0]

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        """`search` for several queries, in the way that is fastest."""

    def bytes(self) -> int:
        """On disk, everything that a search needs."""

    def close(self) -> None:
        """Let go of files and connections."""


class LexLIPEngine(Engine):
    """The index of this package.

    Args:
        folder: of the index; opened at the first search.
        options: of `lexlip.index.build`.
        threads: of a batch; a single query runs on one.
    """

    name = "lexlip"

    def __init__(self, folder: str | Path, options: dict | None = None, threads: int = 1):
        self.folder, self._options, self._threads = Path(folder), options or {}, threads
        self._index: Index | None = None

    def build(self, batches: Iterable[SparseRows]) -> None:
        build(self.folder, batches, overwrite=True, **self._options)
        self._index = None

    def search(self, query: Bag, k: int) -> list[Hit]:
        return self.index.search(query, k, threads=1)

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        return self.index.search_batch(queries, k, threads=self._threads)

    def bytes(self) -> int:
        return disk_bytes(self.folder)

    @property
    def index(self) -> Index:
        """The state that is searched."""
        prefer_compiled()  # many searches come
        self._index = self._index or Index.open(self.folder)
        return self._index


def disk_bytes(path: Path) -> int:
    """What a file, or the files of a folder, occupy: whole blocks of the file system, as `du` counts."""
    sizes = [file.stat() for file in [path, *path.rglob("*")] if file.is_file()]
    return sum(max(size.st_size, getattr(size, "st_blocks", 0) * 512) for size in sizes)
