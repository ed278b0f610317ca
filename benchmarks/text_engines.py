"""BM25 over captions: retrieval by words alone, without a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class BM25:
    """bm25s over texts, queried by some of them; a query never finds itself.

    Args:
        texts: documents.
        queries: numbers of the documents that are queries.
        folder: where the index is saved, to count its bytes.
    """

    name = "bm25s over captions"

    def __init__(self, texts: Sequence[str], queries: Sequence[int], folder: Path):
        import bm25s

        self._queries, self._count = list(queries), len(texts)
        self._tokens = bm25s.tokenize([texts[query] for query in queries], stopwords="en", show_progress=False)
        self._words = {number: word for word, number in self._tokens.vocab.items()}
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
        self._index.save(folder)
        self.bytes = sum(file.stat().st_size for file in folder.iterdir())

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("bm25s") is not None

    def search(self, query: int, k: int) -> list[int]:
        """Numbers of the k best texts."""
        words = [[self._words[number] for number in self._tokens.ids[query]]]
        texts, scores = self._index.retrieve(words, k=min(k + 1, self._count), show_progress=False)
        texts = texts[0][scores[0] > 0]
        return texts[texts != self._queries[query]][:k].tolist()

    def search_batch(self, queries: Sequence[int], k: int) -> list[list[int]]:
        return [self.search(query, k) for query in queries]


def right_captions(of_caption: Sequence[set[int]], begin: int) -> list[set[int]]:
    """For each caption the other captions of its image, numbered from `begin`."""
    images = np.array([next(iter(image)) for image in of_caption])
    return [
        set((np.flatnonzero(images == image) + begin).tolist()) - {caption + begin}
        for caption, image in enumerate(images)
    ]
