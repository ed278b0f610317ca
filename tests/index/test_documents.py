"""What single documents hold, read from the lists, is what the index stores."""

import numpy as np
import pytest

from lexlip.index import Index, IndexingError, SparseRows, add, build, delete
from lexlip.index.documents import document_terms
from lexlip.index.layout import SKIP_EVERY
from lexlip.index.stored import stored_rows


@pytest.fixture
def index(tmp_path):
    """Two segments, one with a list that is longer than is read whole for one document; some documents deleted."""
    rng = np.random.default_rng(0)

    def rows(first, count):
        bags = [
            {0: 1.0 + n / count, **{int(t): float(w) for t, w in zip(rng.choice(50, 5, False), rng.random(5) + 0.1)}}
            for n in range(count)
        ]
        return SparseRows.from_bags(bags, ids=[f"d{first + n}" for n in range(count)])

    build(tmp_path / "index", [rows(0, 2 * SKIP_EVERY)])
    add(tmp_path / "index", [rows(1000, 40)])
    delete(tmp_path / "index", ["d3", "d1001"])
    return Index.open(tmp_path / "index")


def test_they_are_what_is_stored(index):
    stored = {
        id: dict(zip(terms.tolist(), np.asarray(weights, float).tolist()))
        for rows in stored_rows(index)
        for id, terms, weights in rows.documents()
    }
    for ids in (["d500"], list(stored)[::7], ["d1039", "d0", "d511"]):
        for id, (terms, weights) in zip(ids, document_terms(index, ids)):
            assert dict(zip(terms.tolist(), weights.tolist())) == stored[id]
            assert (np.diff(weights) <= 0).all()
    (terms, weights), (all_terms, all_weights) = (document_terms(index, ["d7"], top_k=k)[0] for k in (2, None))
    assert terms.tolist() == all_terms[:2].tolist() and weights.tolist() == all_weights[:2].tolist()
    assert document_terms(index, []) == []


@pytest.mark.parametrize("id", ["d3", "nowhere", 5])
def test_documents_that_are_not_there(index, id):
    assert not index.holds(id) and index.holds("d5")
    with pytest.raises(IndexingError, match="no document has the id"):
        document_terms(index, ["d5", id])


def test_frequencies(index):
    terms, counts = index.document_frequencies()
    found = dict(zip(terms.tolist(), counts.tolist()))
    assert found[0] == 2 * SKIP_EVERY + 40  # deleted ones count until a merge
    assert list(terms) == sorted(terms)
