"""What sparse retrieval is measured against: dense vectors, searched one by one by Faiss or in batches by a product.

Both hold the same random unit vectors, as the time of an exact dense search does not depend on what they mean.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

WIDTH = 512
_BLOCK = 1 << 16  # vectors multiplied at once: a batch's scores stay in the cache


class FlatVectors:
    """Random vectors in Faiss's IndexFlatIP, on one thread.

    Args:
        documents: how many.
        queries: how many.
        seed: of all of them.
    """

    name = f"faiss IndexFlatIP, {WIDTH}-d"

    def __init__(self, documents: int, queries: int, seed: int = 0):
        if importlib.util.find_spec("faiss") is None:
            raise SystemExit("the dense rows need Faiss: pip install faiss-cpu")
        import faiss

        faiss.omp_set_num_threads(1)
        rng = np.random.default_rng(seed)
        self.queries = _unit(rng, queries)
        self._index = faiss.IndexFlatIP(WIDTH)
        for begin in range(0, documents, 50_000):
            self._index.add(_unit(rng, min(50_000, documents - begin)))
        self._vectors = torch.from_numpy(faiss.rev_swig_ptr(self._index.get_xb(), documents * WIDTH)).view(-1, WIDTH)

    def search(self, query: int, k: int) -> list[int]:
        """Ids of the k nearest of one query."""
        return self._index.search(self.queries[query : query + 1], k)[1][0].tolist()

    def product(self, queries: list[int], k: int) -> list[list[int]]:
        """The same of a batch: one matrix product a block of vectors, and the best of each block."""
        batch = torch.from_numpy(self.queries[queries])
        values, ids = [], []
        for begin in range(0, len(self._vectors), _BLOCK):
            top = (batch @ self._vectors[begin : begin + _BLOCK].T).topk(min(k, len(self._vectors) - begin))
            values.append(top.values)
            ids.append(top.indices + begin)
        best = torch.cat(values, 1).topk(k).indices
        return torch.cat(ids, 1).gather(1, best).tolist()

    def bytes(self) -> int:
        """Of the vectors alone."""
        return self._index.ntotal * WIDTH * 4


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
