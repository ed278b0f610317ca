"""Batches of queries as tensors and matrices, and what is one query where several are due."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexlip import LexLIP
from lexlip.index import Index, IndexingError, SparseRows, build
from lexlip.index import queries as queries_module
from lexlip.index.queries import bag_of, bags_of


@pytest.fixture
def index(tmp_path):
    build(tmp_path, [SparseRows.from_dense(torch.eye(6).to_sparse_csr(), list("abcdef"))])
    return Index.open(tmp_path)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_tensors_are_queries(index):
    vectors = torch.tensor([[0, 0.5, 0, 0, 1.0, 0], [0] * 6, [0, 0, 0, 0, 0, 2.0]])
    wanted = [[("e", 1.0), ("b", 0.5)], [], [("f", 2.0)]]
    for queries in (vectors, vectors.numpy(), vectors.to_sparse(), vectors.to_sparse_csr(), list(vectors.to_sparse())):
        assert index.search_batch(queries) == wanted
    for query in (vectors[0].to_sparse(), vectors[:1].to_sparse_csr(), vectors[:1].to_sparse()):
        assert index.search(query) == wanted[0]
    assert [share.term for share in index.explain(vectors[0].to_sparse(), "e")] == [4]
    with pytest.raises(IndexingError, match="a query is one row"):
        index.search(vectors.to_sparse())


@pytest.mark.parametrize("queries", ["dog", b"dog", {1: 0.5}, np.ones(6), torch.ones(6), torch.ones(6).to_sparse(), 5])
def test_one_query_is_no_list_of_queries(index, queries):
    with pytest.raises(IndexingError):
        index.search_batch(queries)


def test_vectors_of_length_one_find_themselves(tmp_path):
    """Rounded weights take a score above 1 by at most what docs/INDEX.md says."""
    rng = np.random.default_rng(0)
    vectors = rng.random((2000, 300)) * (rng.random((2000, 300)) < 0.06)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    build(tmp_path, [SparseRows.from_dense(vectors)])
    hits = Index.open(tmp_path).search_batch(vectors, 1)
    assert [hit.id for (hit,) in hits] == list(range(2000))
    scores = np.array([hit.score for (hit,) in hits])
    assert abs(scores - 1).max() < 0.002


@pytest.fixture(scope="module")
def model():
    return LexLIP.from_pretrained(Path(__file__).parents[1] / "fixtures" / "before_rooms" / "model")


@pytest.fixture
def calls(model, monkeypatch):
    """The sizes of the batches that the model encodes, by kind."""
    sizes = {"encode_text": [], "encode_image": []}
    for name in sizes:
        encode = getattr(model, name)
        monkeypatch.setattr(model, name, lambda given, n=name, e=encode: sizes[n].append(len(given)) or e(given))
    return sizes


WORDS = ["a", "red dot", "a blue dot on a green square", "green", "red " * 9]
MIXED = [WORDS[4], {3: 0.5}, Image.new("RGB", (40, 32), "red"), WORDS[0], ([1, 2], [0.5, 0.25]), *WORDS[1:4],
         Image.new("RGB", (32, 50), "blue"), np.eye(87)[5]]  # fmt: skip


def test_a_batch_encodes_texts_and_images_together_and_keeps_its_order(model, calls, tmp_path):
    build(tmp_path, [SparseRows.from_dense(torch.rand(30, model.vocab_size, generator=torch.manual_seed(0)))])
    index = Index.open(tmp_path, model)
    found = index.search_batch(MIXED, 30)
    assert calls == {"encode_text": [5], "encode_image": [2]}
    for query, hits in zip(MIXED, found, strict=True):
        alone = index.search(query, 30)
        assert {hit.id for hit in hits} == {hit.id for hit in alone}
        scores = {hit.id: hit.score for hit in alone}
        assert all(hit.score == pytest.approx(scores[hit.id], rel=1e-5) for hit in hits)


def test_long_batches_are_cut_into_texts_of_one_length(model, monkeypatch):
    given = []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda texts: given.append([*map(len, texts)]) or encode(texts))
    monkeypatch.setattr(queries_module, "AT_ONCE", 2)
    texts = [WORDS[number] for number in (2, 0, 4, 3, 1)]
    found = bags_of(texts, model)
    assert given == [[1, 5], [7, 28], [36]]
    for text, (terms, weights) in zip(texts, found, strict=True):
        alone = bag_of(text, model)
        assert terms.tolist() == alone[0].tolist() and weights == pytest.approx(alone[1], rel=1e-5)


def test_the_wrong_query_of_a_batch_is_named(model, calls, tmp_path):
    for queries, told in (
        (["a", "red", {1: -1.0}], r"queries\[2\]: .*weighs -1"),
        ([{1: 1.0}, "red", "half \ud83d of one", "a"], r"queries\[2\]: .*half"),
        (["a", {"no-such-word": 1.0}], r"queries\[1\]: 'no-such-word'"),
    ):
        with pytest.raises(IndexingError, match=told):
            bags_of(queries, model)
    with pytest.raises(IndexingError, match=r"^topic 7: a text as query needs a model"):
        bags_of([{1: 1.0}, "a"], None, ["topic 3", "topic 7"])
    assert calls["encode_text"][0] == 3  # what needs no model is looked at first
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(IndexingError, match=r"queries\[2\]: .*truncated"):
        bags_of([{1: 1.0}, Image.new("RGB", (32, 32)), Image.open(path)], model)
