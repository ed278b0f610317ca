"""Collections and queries that the large-scale benchmark runs on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lexlip.index import SparseRows
from lexlip.index.engine import Bag

VOCABULARY = 30_522
BATCH = 50_000


@dataclass(frozen=True)
class SyntheticSet:
    """Random lexicon vectors of a fixed number of terms, the same for the same numbers.

    Terms are drawn independently, document by document, without repeats. A term's probability is log-normal over the
    vocabulary, exp(s z) with z from a normal distribution, so a few terms are in several per cent of the documents and
    many in a few dozen. Queries draw from the same distribution; a query then touches

        documents x query terms x document terms x sum(p^2) = documents x ... / vocabulary x exp(s^2)

    postings on average, which decides how long it takes. s is chosen so that this is `touched` per million documents.
    Terms without repeats make it a few per cent less.

    Weights are what a lexicon head gives: log(1 + z), z from a Gamma distribution of shape 2, and each vector divided
    by its L2 norm.

    Attributes:
        documents: how many.
        terms: per document.
        queries: how many.
        query_terms: per query.
        touched: postings that an average query touches, per million documents.
        seed: of everything.
    """

    documents: int
    terms: int
    queries: int
    query_terms: int
    touched: int
    seed: int = 0

    def batches(self) -> Iterator[SparseRows]:
        """All documents, ids from 0 on."""
        for number, begin in enumerate(range(0, self.documents, BATCH)):
            count = min(BATCH, self.documents - begin)
            terms, weights = self._vectors(np.random.default_rng([self.seed, 1, number]), count, self.terms)
            yield SparseRows.from_arrays(
                np.arange(begin, begin + count), np.arange(count + 1) * self.terms, terms.ravel(), weights.ravel()
            )

    def exact_batches(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """First id, (n, terms) terms and (n, terms) float32 weights: the documents before any rounding."""
        for number, begin in enumerate(range(0, self.documents, BATCH)):
            count = min(BATCH, self.documents - begin)
            yield begin, *self._vectors(np.random.default_rng([self.seed, 1, number]), count, self.terms)

    def bags(self) -> list[Bag]:
        """All queries."""
        return list(zip(*self._vectors(np.random.default_rng([self.seed, 2]), self.queries, self.query_terms)))

    def _vectors(self, rng: np.random.Generator, count: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
        spread = math.sqrt(math.log(VOCABULARY * self.touched / (self.query_terms * self.terms * 1e6)))
        edges = np.exp(spread * np.random.default_rng([self.seed, 0]).standard_normal(VOCABULARY)).cumsum()
        edges /= edges[-1]  # of each term's interval of the random numbers
        drawn = np.sort(np.searchsorted(edges, rng.random((count, terms))), axis=1)
        while (repeated := np.diff(drawn, axis=1, prepend=-1) == 0).any():
            drawn[repeated] = np.searchsorted(edges, rng.random(repeated.sum()))
            drawn.sort(axis=1)
        weights = np.log1p(rng.gamma(2.0, 1.0, (count, terms)))
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        return drawn, weights.astype(np.float32)


# Terms per document -> terms per query, and postings touched, as in earlier comparisons of engines.
SYNTHETIC = {16: (8, 20_000), 32: (16, 65_000)}


def synthetic(terms: int, documents: int, queries: int) -> SyntheticSet:
    """The set with so many terms per document."""
    query_terms, touched = SYNTHETIC[terms]
    return SyntheticSet(documents, terms, queries, query_terms, touched)


def exact_best(data: SyntheticSet, k: int) -> list[list[int]]:
    """Ids of the k best documents of each query, by float64 scores of the unrounded weights; equal ones by id."""
    bags = data.bags()
    wanted = np.unique(np.concatenate([terms for terms, _ in bags]))
    ids, terms, weights = [], [], []
    for begin, batch_terms, batch_weights in data.exact_batches():
        used = np.isin(batch_terms, wanted)
        ids.append((np.nonzero(used)[0] + begin).astype(np.int32))
        terms.append(batch_terms[used].astype(np.int32))
        weights.append(batch_weights[used])
    ids, terms, weights = np.concatenate(ids), np.concatenate(terms), np.concatenate(weights)
    order = np.argsort(terms, kind="stable")
    ids, weights = ids[order], weights[order]
    offsets = np.searchsorted(terms[order], np.arange(VOCABULARY + 1))
    best = []
    scores = np.zeros(data.documents)
    for bag in bags:
        touched = []
        for term, weight in zip(*bag):
            postings = slice(offsets[term], offsets[term + 1])
            scores[ids[postings]] += np.float64(weight) * weights[postings]
            touched.append(ids[postings])
        documents = np.unique(np.concatenate(touched))
        best.append(documents[np.lexsort((documents, -scores[documents]))][:k].tolist())
        scores[documents] = 0
    return best
