"""Fusion of ranked lists by the formulas of the papers, dense vectors beside an index, and re-ranking."""

import json

import numpy as np
import pytest

from lexlip.index import Hit, Index, IndexingError, SparseRows, build, delete
from lexlip.search.dense import DenseVectors, hybrid, rerank, write_dense
from lexlip.search.fusion import fuse

A = [Hit("a", 9.0), Hit("b", 5.0), Hit("c", 1.0)]
B = [Hit("c", 0.9), Hit("d", 0.5)]


def test_reciprocal_ranks_by_hand():
    wanted = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
    fused = fuse([A, B])
    assert [hit.id for hit in fused] == ["c", "a", "b", "d"]  # b and d are equal: by id
    assert {hit.id: hit.score for hit in fused} == pytest.approx(wanted)
    assert fuse([A, B], params={"k": 0})[0] == Hit("c", 1 / 3 + 1)


def test_weighted_scores_by_hand():
    fused = fuse([A, B], method="wsum", params={"weights": (0.25, 0.75)})
    assert {hit.id: hit.score for hit in fused} == pytest.approx({"c": 0.75, "a": 0.25, "b": 0.125, "d": 0.0})
    plain = fuse([A, B], norm=None, method="wsum")
    assert {hit.id: hit.score for hit in plain} == pytest.approx({"a": 9.0, "b": 5.0, "c": 1.9, "d": 0.5})


def test_runs_of_many_queries_as_ranx_has_them():
    runs = [{"q1": {"a": 9.0, "b": 5.0, "c": 1.0}, "q2": {"a": 1.0}}, {"q1": {"d": 0.5, "c": 0.9}}]
    assert fuse(runs) == {"q1": fuse([A, B]), "q2": [Hit("a", 1 / 61)]}
    assert fuse([{"a": 9.0, "b": 5.0, "c": 1.0}, {"c": 0.9, "d": 0.5}]) == fuse([A, B])
    assert fuse([{"a": np.float32(9), "b": np.int64(5)}, {}]) == fuse([A[:2], []])
    assert fuse([{}, {}]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mnz"}, "rrf or wsum"), ({"norm": "zmuv"}, "min-max or None"), ({"params": {"c": 1}}, "no 'c'"),
        ({"method": "wsum", "params": {"weights": [1.0]}}, "1 weights for 2 runs"), ({"params": {"k": -1}}, "k=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_fused_is_refused(options, message):
    with pytest.raises(IndexingError, match=message):
        fuse([A, B], **options)
    with pytest.raises(IndexingError, match="at least one"):
        fuse([])


@pytest.fixture
def both(tmp_path):
    """An index of 300 documents, and dense vectors of all but the first and of one that the index lacks."""
    rng = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(300)]
    build(tmp_path / "i", [SparseRows.from_bags([{1: float(w), int(t): 0.5} for w, t in
                           zip(rng.random(300) + 0.1, rng.integers(2, 6, 300))], names)])  # fmt: skip
    delete(tmp_path / "i", ["7.jpg"])
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    write_dense(tmp_path / "d", [*names[1:], "elsewhere.jpg"], vectors, model="some-model")
    return Index.open(tmp_path / "i"), DenseVectors(tmp_path / "d"), dict(zip([*names[1:], "elsewhere.jpg"], vectors))


def test_both_rankings_are_searched_and_fused(both):
    index, dense, vectors = both
    query = np.ones(8)
    conditions = {"without": {3: 0.0}, "ids": lambda id: not id.startswith("2")}
    fused = hybrid(index, {1: 1.0}, dense, query, 10, depth=50, **conditions)
    hits = index.search({1: 1.0}, 50, **conditions)
    fitting = {hit.id for hit in index.search({1: 1.0}, 300, **conditions)}
    best = sorted(fitting & set(vectors), key=lambda id: -float(vectors[id] @ query))[:50]
    assert [hit.id for hit in dense.search(query, 50, fitting.__contains__)] == best
    assert fused == fuse([hits, dense.search(query, 50, fitting.__contains__)])[:10]
    assert "7.jpg" not in {hit.id for hit in hybrid(index, {1: 1.0}, dense, vectors["7.jpg"], 300, depth=300)}


@pytest.mark.parametrize("fusion", ["rrf", "wsum", "rerank"])
def test_penalties_are_taken_off_both_rankings(both, fusion):
    index, dense, vectors = both
    query, names = np.ones(8), [hit.id for hit in index.search({1: 1.0}, 300)]
    taken = {
        id: 1000 * sum(weight for term, weight in zip(*bag) if term == 3)
        for id, bag in zip(names, index.document_terms(names, 10))
    }
    lowered = {id: float(vectors[id] @ query) - taken[id] for id in names if id in vectors}
    wanted = sorted(lowered, key=lambda id: -lowered[id])
    found = hybrid(index, {1: 1.0}, dense, query, 10, fusion, depth=300, penalties={3: 1000.0})
    assert len(found) == 10 and not any(taken[hit.id] for hit in found)
    if fusion == "rerank":
        assert [hit.id for hit in found] == wanted[:10]
    if fusion == "rrf":
        by_words = index.search({1: 1.0}, 300, penalties={3: 1000.0})
        assert found == fuse([by_words, [Hit(id, 0.0) for id in wanted]])[:10]


def test_params_and_drop_are_passed_on(both, monkeypatch):
    index, dense, vectors = both
    words, allowed = index.search({1: 1.0}, 300), set(vectors) - {"7.jpg", "elsewhere.jpg"}
    by_dense = dense.search(np.ones(8), 300, allowed.__contains__)
    found = hybrid(index, {1: 1.0}, dense, np.ones(8), 10, depth=300, params={"k": 5})
    assert found == fuse([words, by_dense], params={"k": 5})[:10]
    given, search = [], Index.search
    monkeypatch.setattr(Index, "search", lambda *a, **options: given.append(options["drop"]) or search(*a, **options))
    hybrid(index, {1: 1.0}, dense, np.ones(8), 10, drop=0.25)
    assert given == [0.25]


def test_the_best_few_in_dense_order(both):
    index, dense, vectors = both
    hits = index.search({1: 1.0}, 20) + [Hit("0.jpg", 0.01)]
    ranked = rerank(hits, dense, np.ones(8))
    known = [hit.id for hit in hits if hit.id in vectors]
    assert [hit.id for hit in ranked[: len(known)]] == sorted(known, key=lambda id: -float(vectors[id].sum()))
    assert "0.jpg" in {hit.id for hit in ranked[len(known) :]}  # has no vector
    assert (
        hybrid(index, {1: 1.0}, dense, np.ones(8), 5, "rerank")
        == rerank(index.search({1: 1.0}, 200), dense, np.ones(8))[:5]
    )  # noqa: E501


def test_dense_vectors_that_do_not_fit_are_named(both, tmp_path):
    index, dense, _ = both
    with pytest.raises(IndexingError, match="of 8 numbers, the query's of 3"):
        dense.search(np.ones(3), 1)
    with pytest.raises(IndexingError, match="fusion='max'"):
        hybrid(index, {1: 1.0}, dense, np.ones(8), 1, "max")
    with pytest.raises(IndexingError, match="2 ids for vectors"):
        write_dense(tmp_path / "x", ["a", "b"], np.ones((3, 2)))
    for name, content, message in (
        ("ids.txt", b"a\n", "ids.txt has 1 lines"), ("vectors.npy", b"no", "no dense vectors that can be read"),
    ):  # fmt: skip
        (tmp_path / "d" / name).write_bytes(content)
        with pytest.raises(IndexingError, match=message):
            DenseVectors(tmp_path / "d")


def test_vectors_of_faiss(both, tmp_path):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    _, dense, vectors = both
    flat = faiss.IndexFlatIP(8)
    flat.add(np.stack(list(vectors.values())))
    faiss.write_index(flat, str(tmp_path / "d" / "v.faiss"))
    (tmp_path / "d" / "vectors.npy").unlink()
    assert DenseVectors(tmp_path / "d").search(np.ones(8), 5) == dense.search(np.ones(8), 5)


def test_from_the_command_line(both, tmp_path, capsys):
    from lexlip.cli import main

    index, dense, vectors = both
    np.save(tmp_path / "q.npy", np.ones(8))
    words = ["search", "--index", str(tmp_path / "i"), "--bag", '{"1": 1}', "--dense", str(tmp_path / "d"), "--json"]
    assert main([*words, "--dense-query", str(tmp_path / "q.npy"), "-k", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(hit["id"], hit["score"]) for hit in found] == hybrid(index, {1: 1.0}, dense, np.ones(8), 3)
    assert main(words) == 2 and "--dense-query" in capsys.readouterr().err
