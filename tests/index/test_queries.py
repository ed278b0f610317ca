"""Batches of queries as tensors and matrices, and what is one query where several are due."""

import numpy as np
import pytest
import torch

from lexlip.index import Index, IndexingError, SparseRows, build


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
