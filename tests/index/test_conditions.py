"""Words that results must and must not have, ids, and penalties: equal to brute force, in numpy and compiled."""

import numpy as np
import pytest

from lexlip.index import DamagedIndex, Hit, Index, IndexingError, SparseRows, add, build, delete, unpacked
from lexlip.index.layout import END

TERMS = 60


@pytest.fixture(params=["numpy", "compiled"])
def way(request, monkeypatch):
    """Both ways of searching; each is refused the other's functions."""
    monkeypatch.setattr(unpacked, "BUDGET", 1 << 60 if request.param == "numpy" else 0)
    monkeypatch.setattr(unpacked, "_spent", 0)
    if request.param == "numpy":
        monkeypatch.setattr("lexlip.index.scoring.search", None)
    else:
        monkeypatch.setattr(unpacked, "unpack", None)
        monkeypatch.setattr(unpacked, "best", None)
    return request.param


@pytest.fixture
def index(tmp_path, rows):
    """Three segments with deleted documents, long lists with skips among them."""
    build(tmp_path / "i", [rows(1200, TERMS, 12)], segment_documents=700)
    add(tmp_path / "i", [rows(300, TERMS, 12, seed=3, first_id=1100)])
    delete(tmp_path / "i", list(range(0, 1600, 17)))
    return Index.open(tmp_path / "i")


class Obvious:
    """Every document's whole vector; conditions and penalties by hand."""

    def __init__(self, index, brute_force):
        every = brute_force(index)
        self.vectors = np.zeros((len(every.ids), TERMS))
        self.vectors[every.documents, every.terms] = every.weights
        self.ids, self.rank = np.array(every.ids), every.rank

    def __call__(self, query, k, without=(), required=(), ids=None, penalties=()):
        scores = np.zeros(len(self.ids))
        for term, weight in sorted(query.items()):
            scores += weight * self.vectors[:, term]
        found = scores > 0
        for term, level in dict(without).items():
            found &= ~(self.vectors[:, term] > level)
        for term, level in dict(required).items():
            found &= self.vectors[:, term] > level
        if ids is not None:
            found &= [ids(id) for id in self.ids.tolist()]
        taken = np.zeros(len(self.ids))
        for term, factor in sorted(dict(penalties).items()):
            taken += factor * self.vectors[:, term]
        scores -= taken
        found = np.flatnonzero(found)
        best = found[np.lexsort((self.rank[found], -scores[found]))][:k]
        return [Hit(int(self.ids[document]), float(scores[document])) for document in best]


def test_1000_random_queries_equal_brute_force(index, brute_force, way):
    obvious, rng = Obvious(index, brute_force), np.random.default_rng(5)

    def some(most, values):
        terms = rng.integers(0, TERMS, rng.integers(0, most + 1))
        return {int(term): float(values()) for term in terms}

    seen = []
    for number in range(1000 if way == "numpy" else 250):
        query = some(6, lambda: rng.gamma(2.0, 1.0)) or {3: 1.0}
        level = lambda: rng.choice([0.0, 0.5, 1.0, 3.0])
        conditions = {
            "without": some(2, level), "required": some(number % 3, level),
            "penalties": some(number % 4, lambda: rng.choice([0.0, 0.3, 5.0])),
            "ids": (lambda id: id % 3 > 0) if number % 5 == 0 else None,
        }  # fmt: skip
        k = int(rng.choice([1, 10, 300]))
        hits = index.search(query, k, **conditions)
        assert hits == obvious(query, k, **conditions), (query, k, conditions)
        seen.append(len(hits))
    assert np.mean(np.array(seen) > 0) > 0.6


def test_searches_in_numpy_equal_compiled_ones(index, queries, monkeypatch):
    """Bit for bit, whatever the number of queries at once."""
    bags = queries(300, TERMS)
    monkeypatch.setattr(unpacked, "_spent", 1 << 60)
    compiled = index.search_batch(bags, 10)
    explained = index.explain(bags[1], compiled[1][0].id)
    monkeypatch.setattr(unpacked, "BUDGET", 1 << 61)
    monkeypatch.setattr("lexlip.index.scoring.search", None)
    monkeypatch.setattr("lexlip.index.codec.find", None)
    assert index.search_batch(bags, 10) == compiled == [index.search(bag, 10) for bag in bags]
    assert index.explain(bags[1], compiled[1][0].id) == explained


def test_a_penalty_looks_at_as_many_documents_as_it_must(tmp_path, way):
    """The best without the penalty all lose by it, more of them than are looked at first."""
    bags = [{1: 1.0, 2: 1.0}] * 3000 + [{1: 0.5}] * 5
    build(tmp_path, [SparseRows.from_bags(bags)])
    hits = Index.open(tmp_path).search({1: 1.0}, 3, penalties={2: 0.75})
    assert [hit.id for hit in hits] == [3000, 3001, 3002] and hits[0].score == pytest.approx(0.5, abs=1e-3)


def test_a_damaged_list_is_refused_both_ways(tmp_path, rows, way):
    build(tmp_path, [rows(3000, 4, 4)])
    (segment,) = tmp_path.glob("*.seg")
    end = 8 + int(Index.open(tmp_path).segments[0].table[1, END])
    content = bytearray(segment.read_bytes())
    content[end - 4 : end] = bytes(4)  # postings that are missing
    segment.write_bytes(content)
    index = Index.open(tmp_path)
    for call in (
        lambda: index.search({1: 1.0}), lambda: index.search({3: 1.0}, without={1: 0}),
        lambda: index.explain({1: 1.0}, index.search({2: 1.0})[0].id),
    ):  # fmt: skip
        with pytest.raises(DamagedIndex, match="list of term 1 is damaged"):
            call()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"without": ["dog"]}, "without maps terms or words"), ({"without": {1: -0.5}}, "without: -0.5 for term 1"),
        ({"required": {1: "x"}}, "required: 'x'"), ({"penalties": {1: float("nan")}}, "penalties: nan"),
        ({"without": {"dog": 0}}, "needs a model"), ({"required": {1.5: 0}}, "words or whole numbers"),
        ({"penalties": {1: True}}, "penalties: True"),
    ],
)  # fmt: skip
def test_bad_conditions_are_named(index, conditions, message):
    with pytest.raises(IndexingError, match=message):
        index.search({1: 1.0}, **conditions)


def test_terms_that_no_document_has(index, way):
    plain = index.search({1: 1.0})
    assert index.search({1: 1.0}, without={4_000_000: 0.0}, penalties={5_000_000: 1.0}) == plain
    assert index.search({1: 1.0}, required={4_000_000: 0.0}) == []
