"""Dense vectors, which sparse retrieval is measured against: in Faiss on one thread, or multiplied in batches."""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

WIDTH = 512
_BLOCK = 1 << 16  # vectors multiplied at once: a batch's scores stay in the cache
_TRAINED_ON = 50_000  # vectors, at least, that a quantiser learns from
_PER_LIST = 40  # of an inverted list; Faiss asks for 39
RANDOM_BLOCK = 50_000
SUBVECTORS = 64  # bytes of a vector in IVF-PQ
_EFFORTS = (16, 64, 256)  # lists that IVF searches, candidates that HNSW keeps


class FlatVectors:
    """Vectors in Faiss's IndexFlatIP.

    Args:
        blocks: (n, W) float32 each, of length 1.
        queries: (Q, W) float32, of length 1.
    """

    def __init__(self, blocks, queries: np.ndarray):
        faiss = _faiss()
        self.queries, self.width = np.ascontiguousarray(queries), queries.shape[1]
        self.name = f"faiss IndexFlatIP, {self.width}-d"
        self.index = faiss.IndexFlatIP(self.width)
        for block in blocks:
            self.index.add(np.ascontiguousarray(block))
        self.vectors = faiss.rev_swig_ptr(self.index.get_xb(), self.index.ntotal * self.width).reshape(-1, self.width)

    @classmethod
    def random(cls, documents: int, queries: int, seed: int = 0) -> FlatVectors:
        """Random vectors of WIDTH numbers: the time of an exact search does not depend on what vectors mean."""
        rng = np.random.default_rng(seed)
        query_vectors = _unit(rng, queries)
        sizes = [min(RANDOM_BLOCK, documents - begin) for begin in range(0, documents, RANDOM_BLOCK)]
        return cls((_unit(rng, size) for size in sizes), query_vectors)

    def search(self, query: int, k: int) -> list[int]:
        """Ids of the k nearest of one query."""
        return self.index.search(self.queries[query : query + 1], k)[1][0].tolist()

    def product(self, queries: Sequence[int], k: int) -> list[list[int]]:
        """The same of a batch: one matrix product a block of vectors, and the best of each block."""
        batch, vectors = torch.from_numpy(self.queries[queries]), torch.from_numpy(self.vectors)
        values, ids = [], []
        for begin in range(0, len(vectors), _BLOCK):
            top = (batch @ vectors[begin : begin + _BLOCK].T).topk(min(k, len(vectors) - begin))
            values.append(top.values)
            ids.append(top.indices + begin)
        values = torch.cat(values, 1)
        best = values.topk(min(k, values.shape[1])).indices
        return torch.cat(ids, 1).gather(1, best).tolist()

    def bytes(self) -> int:
        """Of the vectors alone."""
        return self.index.ntotal * self.width * 4


class FaissEngine:
    """Another of Faiss's indexes over the same vectors.

    Args:
        kind: one of KINDS.
        flat: the vectors.

    Attributes:
        build_s: seconds.
        efforts: how much a search may do, each to be tried: lists searched of IVF, candidates kept of HNSW, else 0.
    """

    KINDS = ("int8 flat", "IVF-PQ", "HNSW")

    def __init__(self, kind: str, flat: FlatVectors):
        faiss = _faiss()
        count, width = flat.index.ntotal, flat.width
        lists = 1 << max(2, round(math.log2(4 * math.sqrt(count))))
        subvectors = max(part for part in range(1, SUBVECTORS + 1) if width % part == 0)
        self.factory = {"int8 flat": "SQ8", "IVF-PQ": f"IVF{lists},PQ{subvectors}", "HNSW": "HNSW32,Flat"}[kind]
        begin = time.perf_counter()
        self.index = faiss.index_factory(width, self.factory, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(count)[: max(_TRAINED_ON, _PER_LIST * lists)]
        self.index.train(flat.vectors[np.sort(sample)])
        self.index.add(flat.vectors)
        self.build_s = time.perf_counter() - begin
        self.kind, self._flat = kind, flat
        self.efforts = {
            "int8 flat": [0], "IVF-PQ": sorted({min(lists, probes) for probes in _EFFORTS}), "HNSW": list(_EFFORTS),
        }[kind]  # fmt: skip

    def name(self, effort: int) -> str:
        at = {"int8 flat": "", "IVF-PQ": f", {effort} probes", "HNSW": f", efSearch {effort}"}[self.kind]
        return f"faiss {self.factory}{at}, {self._flat.width}-d"

    def search(self, query: int, k: int, effort: int) -> list[int]:
        return self.search_batch([query], k, effort)[0]

    def search_batch(self, queries: Sequence[int], k: int, effort: int) -> list[list[int]]:
        if self.kind == "IVF-PQ":
            self.index.nprobe = effort
        if self.kind == "HNSW":
            self.index.hnsw.efSearch = effort
        return self.index.search(self._flat.queries[queries], k)[1].tolist()

    def bytes(self, folder: Path) -> int:
        """Of the index as Faiss writes it."""
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            _faiss().write_index(self.index, file.name)
            return Path(file.name).stat().st_size


def _faiss():
    if importlib.util.find_spec("faiss") is None:
        raise SystemExit("the dense rows need Faiss: pip install faiss-cpu")
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
