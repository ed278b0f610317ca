"""An index in PyTerrier's pipelines, with the results of a search."""

import numpy as np
import pandas as pd
import pytest

from lexlip.errors import IndexingError
from lexlip.index import Index, SparseRows, build

pt = pytest.importorskip("pyterrier", reason="pip install python-terrier")

from lexlip.integrations.pyterrier import LexLIPRetriever  # noqa: E402

TEXTS = ["a red dot", "small green ring on a grey box", "dark", "a large blue cross beside the box", "light under a"]


@pytest.fixture
def index(make_worded, tmp_path):
    model = make_worded().eval()
    build(tmp_path / "index", [SparseRows.from_dense(model.encode_text(TEXTS), ids=[f"d{n}" for n in range(5)])])
    return Index.open(tmp_path / "index", model)


def test_results_are_those_of_a_search(index):
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["a dark box", "green light"]})
    results = (LexLIPRetriever(index, k=4) % 3)(topics)
    for qid, query in topics.itertuples(index=False):
        found = results[results["qid"] == qid]
        hits = index.search(query, 3)
        assert found["docno"].tolist() == [hit.id for hit in hits] and found["rank"].tolist() == list(range(len(hits)))
        np.testing.assert_allclose(found["score"], [hit.score for hit in hits], atol=1e-5)
    assert len(LexLIPRetriever(index)(topics[:0])) == 0


def test_an_experiment(index):
    topics = pd.DataFrame({"qid": [str(n) for n in range(5)], "query": TEXTS})
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": [f"d{n}" for n in range(5)], "label": 1})
    table = pt.Experiment([LexLIPRetriever(index, k=5)], topics, qrels, [pt.measures.RR @ 10, pt.measures.Success @ 1])
    assert table["RR@10"][0] == 1 and table["Success@1"][0] == 1  # each text finds itself


def test_an_index_without_a_model(index):
    with pytest.raises(ValueError, match="need a model"):
        LexLIPRetriever(index.folder)(pd.DataFrame({"qid": ["1"], "query": ["a"]}))


def test_columns_of_a_topic_stay_and_odd_topics_are_named(index):
    topics = pd.DataFrame(
        {"qid": ["1", "2"], "query": ["a dark box", "green light"], "lang": ["en", "de"]}, index=[7, 7]
    )
    retriever = LexLIPRetriever(index, k=2)
    once = retriever(topics)
    assert list(once.columns) == ["qid", "query", "lang", "docno", "score", "rank"]
    assert once[["qid", "lang", "rank"]].values.tolist() == [
        ["1", "en", 0],
        ["1", "en", 1],
        ["2", "de", 0],
        ["2", "de", 1],
    ]
    again = retriever(once.drop_duplicates("qid"))  # results as topics: the columns of the first search go
    pd.testing.assert_frame_equal(again, once)
    with pytest.raises(pt.validate.InputValidationError, match="query"):
        retriever(topics[["qid"]])
    with pytest.raises(IndexingError, match="topic 2: the query .* is no text"):
        retriever(topics.assign(query=["a", None]))
