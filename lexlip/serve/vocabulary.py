"""The model's words and how common they are among the documents: suggestions for a search box."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lexlip.index.places import Searchable


class WordCount(NamedTuple):
    """A word, and in how many documents it has a weight."""

    word: str
    documents: int


class WordsOfTerms:
    """Words by term and back; counts are those of the newest index that was asked for.

    Args:
        terms: of each word.

    `suggest` is for one thread at a time.
    """

    def __init__(self, terms: Mapping[str, int]):
        self.terms = terms
        self.words = {term: word for word, term in terms.items()}
        # Whole words only: pieces inside of words (##s) and signs are nothing that a person would begin to write.
        self._written = sorted(word for word in terms if word[:1].isalnum())
        self._known: tuple[Searchable | None, dict[int, int]] = (None, {})
        self._all: list[WordCount] = []  # words that have a document, the commonest first

    def suggest(self, index: Searchable, prefix: str, limit: int) -> list[WordCount]:
        """The commonest words that begin so, and have a document at all; of a whole word, that first."""
        prefix = prefix.lower()
        counts = self._counts(index)
        if not prefix:
            return self._all[:limit]
        first = bisect_left(self._written, prefix)
        last = bisect_left(self._written, prefix + "\U0010ffff")
        found = self._counted(self._written[first:last], counts)
        return heapq.nsmallest(limit, found, key=lambda each: (each.word != prefix, *_commonest(each)))

    def named(self, bag: tuple[np.ndarray, np.ndarray]) -> list[tuple[str, float]]:
        """Words and weights of terms that the vocabulary has, in their order."""
        pairs = zip(bag[0].tolist(), bag[1].tolist())
        return [(self.words[term], weight) for term, weight in pairs if term in self.words]

    def _counted(self, words: list[str], counts: dict[int, int]) -> list[WordCount]:
        found = (WordCount(word, counts.get(self.terms[word], 0)) for word in words)
        return [each for each in found if each.documents]

    def _counts(self, index: Searchable) -> dict[int, int]:
        known, counts = self._known
        if known is not index:
            terms, numbers = index.document_frequencies()
            counts = dict(zip(terms.tolist(), numbers.tolist()))
            self._all = sorted(self._counted(self._written, counts), key=_commonest)
            self._known = index, counts
        return counts


def _commonest(each: WordCount) -> tuple[int, str]:
    return -each.documents, each.word
