"""The large-scale benchmark on a small set: the rows it writes, and that its data are what it says."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture
def sets():
    import retrieval_sets

    return retrieval_sets


def test_rows(benchmarks, tmp_path):
    pytest.importorskip("faiss", reason="the dense rows need faiss-cpu")
    command = [sys.executable, str(benchmarks / "large_scale.py"), "--synthetic", "16", "--docs", "20000"]
    command += ["--queries", "50", "--rounds", "1", "--impact-bits", "9", "12", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    rival = [row for row in rows if row["engine"] == "bmp, blocks of 16"]  # where it is installed
    rows = [row for row in rows if row not in rival]
    assert [row["engine"].split()[0] for row in rows] == ["lexlip,", "lexlip,", "faiss", "matrix"]
    assert all(row["recall@10"] > 0.8 and row["bytes"] > rows[0]["bytes"] for row in rival)
    for row in rows:
        assert row["documents"] == 20_000 and row["qps"] > 0 and row["bytes"] > 0
        assert row["engine"] in done.stdout
    ours, finer, flat, product = rows
    assert 0.97 < ours["recall@10"] < finer["recall@10"] <= 1 and flat["recall@10"] == product["recall@10"] == 1
    assert ours["bytes"] < finer["bytes"] < flat["bytes"] == 20_000 * 512 * 4
    assert flat["faster_than_flat"] == flat["smaller_than_flat"] == product["batch_faster_than_product"] == 1
    assert ours["faster_than_flat"] == ours["qps"] / flat["qps"]
    assert ours["smaller_than_flat"] == flat["bytes"] / ours["bytes"]
    assert 0 < ours["p50_ms"] <= ours["p99_ms"]
    assert not list(tmp_path.glob("large-scale-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "4", "6", "8"], "--adapter-top-k 32 is none of --top-k 4 6 8"),
        (["--distractors", "300000", "--top-k", "32"], "adapter-documents"),
    ],
)
def test_adapters_that_would_get_no_row_are_refused_before_anything_is_encoded(benchmarks, capsys, words, message):
    import large_scale

    with pytest.raises(SystemExit) as ended:
        large_scale.main(["--model", "nowhere", "--data", "nowhere", "--adapters", "seismic", *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error.splitlines()[-1]


@pytest.mark.parametrize("terms", [16, 32])
def test_synthetic_set(sets, terms):
    """Vectors of that many terms and length 1, the same each time; queries touch what they should, in the mean."""
    data = sets.synthetic(terms, 120_000, 300)
    batches = list(data.batches())
    assert sum(map(len, batches)) == 120_000 and len(batches) > 1
    touched = np.zeros(sets.VOCABULARY, int)
    for batch, (_, terms_of, weights) in zip(batches, data.exact_batches()):
        assert (np.diff(terms_of, axis=1) > 0).all() and terms_of.shape[1] == terms
        assert np.linalg.norm(weights, axis=1) == pytest.approx(1, abs=1e-6)
        assert np.array_equal(batch.weights, weights.ravel().astype(np.float16))
        touched += np.bincount(batch.terms, minlength=sets.VOCABULARY)
    mean = np.mean([touched[query].sum() for query, _ in data.bags()])
    assert mean == pytest.approx(data.touched * 0.12, rel=0.1)
    again = next(iter(sets.synthetic(terms, 120_000, 5).batches()))
    assert np.array_equal(again.terms, batches[0].terms) and np.array_equal(again.weights, batches[0].weights)


def test_exact_best_is_the_matrix_product(sets):
    data = sets.synthetic(16, 3000, 40)
    dense = np.zeros((3000, sets.VOCABULARY))
    for begin, terms, weights in data.exact_batches():
        np.put_along_axis(dense[begin : begin + len(terms)], terms, weights.astype(float), axis=1)
    for (terms, weights), best in zip(data.bags(), sets.exact_best(data, 10)):
        scores = dense[:, terms] @ weights.astype(float)
        wanted = [document for document in np.lexsort((np.arange(3000), -scores)) if scores[document] > 0][:10]
        assert best == wanted
