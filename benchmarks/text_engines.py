"""BM25 over captions: what words alone find, without a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class BM25:
    """bm25s over texts, queried by some of them; a query never finds itself.

    Args:
        texts: documents.
        queries: numbers of the documents that are asked.
        folder: where the index is saved, to count its bytes.
    """

    name = "bm25s over captions"

    def __init__(self, texts: Sequence[str], queries: Sequence[int], folder: Path):
        import bm25s

        self._queries, self._count = list(queries), len(texts)
        self._asked = bm25s.tokenize([texts[query] for query in queries], stopwords="en", show_progress=False)
        self._words = {number: word for word, number in self._asked.vocab.items()}
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
        self._index.save(folder)
        self.bytes = sum(file.stat().st_size for file in folder.iterdir())

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("bm25s") is not None

    def search(self, query: int, k: int) -> list[int]:
        """Numbers of the k best texts."""
        words = [[self._words[number] for number in self._asked.ids[query]]]
        found, scores = self._index.retrieve(words, k=min(k + 1, self._count), show_progress=False)
        found = found[0][scores[0] > 0]
        return found[found != self._queries[query]][:k].tolist()

    def search_batch(self, queries: Sequence[int], k: int) -> list[list[int]]:
        return [self.search(query, k) for query in queries]


def right_captions(of_caption: Sequence[set[int]], begin: int) -> list[set[int]]:
    """For each caption the other captions of its picture, numbered from `begin`."""
    pictures = np.array([next(iter(picture)) for picture in of_caption])
    return [
        set((np.flatnonzero(pictures == picture) + begin).tolist()) - {caption + begin}
        for caption, picture in enumerate(pictures)
    ]
