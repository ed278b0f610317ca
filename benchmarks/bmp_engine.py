"""Block-max pruning (Mallia, Suel and Tonellotto, SIGIR 2024) as a rival, fed by our CIFF export: `pip install bmp`."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lexlip.index import Index, build
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.export import export
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.sparse import SparseRows

SCALE = 100  # impacts are weights x this, rounded


class BMPEngine(Engine):
    """All blocks whose bound reaches the k-th best score are looked at, so it is exact for the impacts that it keeps.

    Scores are its own: it rounds a query's weights too.

    Args:
        path: of its one file.
        block: documents in a block.
    """

    name = "bmp"

    def __init__(self, path: str | Path, block: int = 16):
        self._path, self._block = Path(path), block
        self._terms = self._path.with_suffix(".npy")
        self._searcher = None

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("bmp") is not None

    def build(self, batches: Iterable[SparseRows]) -> None:
        from bmp import ciff2bmp

        with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
            build(Path(folder) / "index", batches)
            index = Index.open(Path(folder) / "index")
            export(index, "ciff", Path(folder) / "ciff", SCALE)
            np.save(self._terms, np.unique(np.concatenate([segment.terms for segment in index.segments])))
            file = str(Path(folder) / "ciff" / "index.ciff")
            ciff2bmp(ciff_file=file, output=str(self._path), bsize=self._block, compress_range=True)

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        from bmp import Searcher

        if self._searcher is None:
            self._searcher = Searcher(str(self._path))
            self._known = np.load(self._terms)
        results = []
        for terms, weights in queries:
            known = np.isin(terms, self._known)  # it panics on a term that no document has
            bag = dict(zip(map(str, terms[known].tolist()), weights[known].tolist()))
            ids, scores = self._searcher.search(bag, k=k, alpha=1.0, beta=1.0) if bag else ((), ())
            results.append([Hit(int(id), score) for id, score in zip(ids, scores)])
        return results

    def bytes(self) -> int:
        return disk_bytes(self._path)

    def close(self) -> None:
        self._searcher = None
