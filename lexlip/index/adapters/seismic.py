"""Seismic (Bruch et al., SIGIR 2024): an approximate index in memory, kept in one file."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import in_parts, needed
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.sparse import SparseRows, offsets_of

_ROWS = 50_000
_FILE = "lexicon"


class SeismicEngine(Engine):
    """Approximate: clusters of postings are looked at only where their summary promises enough.

    Args:
        folder: of the index; all documents are in memory while it is built and while it is searched.
        query_cut: heaviest terms of a query that are looked up.
        heap_factor: below 1 more clusters are looked at; 0 looks at all.
        threads: of a batch.
        options: of `SeismicIndex.build_from_dataset`.

    Raises:
        IndexingError: pyseismic-lsr is not installed.
    """

    name = "seismic"

    def __init__(
        self, folder: str | Path, query_cut: int = 16, heap_factor: float = 0.8, threads: int = 1,
        options: dict | None = None,
    ):  # fmt: skip
        self._seismic = needed("seismic", "seismic")
        self._folder, self._cut, self._factor, self._threads = Path(folder), query_cut, heap_factor, threads
        self._options = options or {}
        self._text = self._seismic.get_seismic_string()
        self._index: tuple | None = None

    def build(self, batches: Iterable[SparseRows]) -> None:
        data = self._seismic.SeismicDataset()
        kinds: set[type] = set()
        for part in in_parts(batches, _ROWS):
            ids, terms, weights = zip(*part)
            kinds |= set(map(type, ids))
            data.add_documents_by_id(
                list(map(str, ids)), np.concatenate(terms).astype(np.int64), np.concatenate(weights),
                offsets_of(list(map(len, terms))),
            )  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        index = self._seismic.SeismicIndex.build_from_dataset(data, **self._options)
        index.save(str(self._folder / _FILE))
        (self._folder / "ids").write_text("string" if str in kinds else "int" if kinds else "")
        self._index = None

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        index, kind = self._open()
        if kind is None:  # it panics on a query to no documents
            return [[] for _ in queries]
        answers = index.batch_search(
            np.array([str(number) for number in range(len(queries))], self._text),
            [np.array([str(int(term)) for term in terms], self._text) for terms, _ in queries],
            [np.asarray(weights, np.float32) for _, weights in queries],
            k=k, query_cut=self._cut, heap_factor=self._factor, num_threads=self._threads,
        )  # fmt: skip
        results: list[list[Hit]] = [[] for _ in queries]
        for hits in answers:
            for query, score, id in hits:
                results[int(query)].append(Hit(kind(id), float(score)))
        return results

    def bytes(self) -> int:
        return disk_bytes(self._folder)

    def _open(self) -> tuple:
        if self._index is None:
            file = self._folder / f"{_FILE}.index.seismic"
            if not file.is_file():
                raise IndexingError(f"{self._folder} holds no index of Seismic")
            kind = {"int": int, "string": str, "": None}[(self._folder / "ids").read_text()]
            self._index = self._seismic.SeismicIndex.load(str(file)), kind
        return self._index
