"""Random collections, and brute force over what an index has stored."""

import numpy as np
import pytest

from lexlip.index import Hit, SparseRows
from lexlip.index.codec import decode
from lexlip.index.layout import COUNT


def random_rows(documents, vocabulary, most_terms, seed=0, first_id=0, ids=None, empty_ratio=0.05, copies_ratio=0.1):
    """Documents of 0 to `most_terms` terms, common ones more often; some empty, some copies of others."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, min(most_terms, vocabulary) + 1, documents)
    counts[rng.random(documents) < empty_ratio] = 0
    bags = []
    for count in counts:
        terms = np.unique((rng.random(count) ** 2 * vocabulary).astype(int))
        bags.append((terms, np.log1p(rng.gamma(2.0, 1.0, len(terms))).astype(np.float16)))
    for copy in np.flatnonzero(rng.random(documents) < copies_ratio):
        bags[copy] = bags[rng.integers(documents)]
    offsets = np.concatenate([[0], np.cumsum([len(terms) for terms, _ in bags])])
    terms = np.concatenate([terms for terms, _ in bags]) if bags else np.empty(0, int)
    weights = np.concatenate([weights for _, weights in bags]) if bags else np.empty(0)
    return SparseRows.from_arrays(
        np.arange(first_id, first_id + documents) if ids is None else ids, offsets, terms, weights
    )


def random_queries(number, vocabulary, seed=1):
    """Bags of 0 to 12 terms, a few of which no document has; now and then a term twice."""
    rng = np.random.default_rng(seed)
    queries = []
    for _ in range(number):
        terms = (rng.random(rng.integers(0, 13)) ** 2 * vocabulary * 1.1).astype(int)
        queries.append((terms, rng.gamma(2.0, 1.0, len(terms)).astype(np.float32)))
    return queries


class BruteForce:
    """Every score of a query in float64, from an index's decoded postings; deleted documents left out."""

    def __init__(self, index):
        self.ids, self.documents, self.terms, self.weights = [], [], [], []
        for segment in index.segments:
            alive = segment.alive()
            begin = len(self.ids)
            self.ids += segment.ids.all().tolist()
            for row, term in enumerate(segment.terms.tolist()):
                count = segment.table[row, COUNT]
                documents, codes = np.zeros(count, np.int64), np.zeros(count, np.int64)
                assert decode(segment.data, segment.table[row], segment.bits, documents, codes) == count
                live = alive[documents]
                self.documents.append(documents[live] + begin)
                self.weights.append(segment.impacts[codes[live]])
                self.terms.append(np.full(live.sum(), term))
        self.documents, self.terms, self.weights = (
            np.concatenate([np.empty(0, np.int64), *column]).astype(kind)
            for column, kind in ((self.documents, int), (self.terms, int), (self.weights, float))
        )
        order = np.argsort(self.terms, kind="stable")
        self.documents, self.terms, self.weights = self.documents[order], self.terms[order], self.weights[order]
        # Ties go by id: strings by their bytes.
        keys = [id.encode() if isinstance(id, str) else id for id in self.ids]
        self.rank = np.empty(len(keys), int)
        self.rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))

    def __call__(self, query, k):
        weight_of = {}
        for term, weight in zip(np.asarray(query[0]).tolist(), np.asarray(query[1], float).tolist()):
            weight_of[term] = weight_of.get(term, 0.0) + weight
        scores = np.zeros(len(self.ids))
        for term, weight in sorted(weight_of.items()):
            if weight > 0:
                begin, end = np.searchsorted(self.terms, [term, term + 1])
                scores[self.documents[begin:end]] += weight * self.weights[begin:end]
        found = np.flatnonzero(scores > 0)
        best = found[np.lexsort((self.rank[found], -scores[found]))][:k]
        return [Hit(self.ids[document], scores[document]) for document in best.tolist()]


def flip_bits(path, place, bits=1):
    """Damage a file: other bits in the byte at a place."""
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def read_number(data, place):
    """A number in bytes of 7 bits, lowest first, the eighth bit set on all but the last; and where it ends."""
    value = shift = 0
    while True:
        value |= (data[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 128:
            return value, place


@pytest.fixture(scope="session")
def rows():
    return random_rows


@pytest.fixture(scope="session")
def queries():
    return random_queries


@pytest.fixture(scope="session")
def brute_force():
    return BruteForce


@pytest.fixture(scope="session")
def flip():
    return flip_bits


@pytest.fixture(scope="session")
def varint():
    return read_number
