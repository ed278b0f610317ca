"""What the large-scale benchmark says below its tables."""

import pytest


@pytest.fixture
def tables():
    import tables

    return tables


def row(top_k, recall, engine="lexlip", **facts):
    lost = {"R@1 lost": round(5.1 - recall, 2), "R@1 lost, error": 0.44} if top_k else {}
    return {"engine": f"{engine}, {top_k or 'all'} terms", "top_k": top_k, "R@1": recall, **lost, **facts}


def test_fewest_terms(tables):
    uncut = row(None, 5.1)
    rows = [
        {"engine": "faiss IndexFlatIP", "R@1": 5.1}, uncut, row(None, 5.1, drop=0.1), row(32, 5.2), row(16, 4.1),
        row(12, 3.9), row(8, 4.3), row(4, 4.0), row(2, 5.0, engine="qdrant"),
    ]  # fmt: skip
    assert tables.fewest_terms(rows) == (uncut, rows[6])
    assert tables.fewest_terms(rows, most_lost=2) == (uncut, rows[7])
    assert tables.fewest_terms(rows, most_lost=-1) == (uncut, uncut)
    assert tables.fewest_terms(rows[:1]) is None and tables.fewest_terms(rows[3:]) is None


def test_it_is_printed(tables, capsys):
    known = {
        "direction": "image to text", "distractors": 10, "queries": 7, "qps": 9.0, "p50_ms": 1.0, "p99_ms": 2.0,
        "bytes": 100, "R@5": 9.0, "R@10": 10.0, "batch_qps": 20.0,
    }  # fmt: skip
    rows = [
        {**known, **row(None, 5.1), "faster_than_flat": 10.0, "smaller_than_flat": 5.0,
         "batch_faster_than_product": 2.0},
        {**known, **row(8, 4.5), "faster_than_flat": 250.0, "smaller_than_flat": 60.0,
         "batch_faster_than_product": 50.0},
    ]  # fmt: skip
    tables.print_trained(rows)
    assert (
        "fewest terms within one point of R@1: 8 terms, R@1 4.5 of 5.1 (0.6 ± 0.4 lost); 250.0 times faster than "
        "single flat queries, 50.0 times faster than batched products, 60.0 times smaller"
    ) in capsys.readouterr().out
