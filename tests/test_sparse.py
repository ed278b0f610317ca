"""The container of sparse rows against dense tables and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lexlip.errors import IndexingError
from lexlip.sparse import SparseRows


@pytest.fixture
def dense():
    """(7, 12) float32 with many equal weights; rows 2 and 6 are empty."""
    rng = np.random.default_rng(0)
    table = (rng.integers(0, 4, (7, 12)) / 4).astype(np.float32)
    table[[2, 6]] = 0
    return table


def as_dense(rows, width=12):
    table = np.zeros((len(rows), width), np.float32)
    for number, (_, terms, weights) in enumerate(rows.documents()):
        table[number, terms] = weights
    return table


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda table: torch.from_numpy(table).half()])
def test_dense_vectors_become_rows_and_dense_again(dense, make):
    rows = SparseRows.from_dense(make(dense))
    assert np.array_equal(as_dense(rows), dense)
    assert (rows.terms.dtype, rows.weights.dtype, rows.offsets.dtype) == (np.uint32, np.float16, np.int64)
    assert rows.ids.tolist() == list(range(7)) and (rows.weights > 0).all()
    assert rows.rows.tolist() == dense.nonzero()[0].tolist()


def test_dense_vectors_and_bags_are_the_same_rows():
    dense = torch.zeros(3, 10)
    dense[0, [2, 5]] = torch.tensor([0.5, 0.25])
    dense[2, 9] = 1.0
    for rows in (SparseRows.from_dense(dense), SparseRows.from_bags([{2: 0.5, 5: 0.25}, {}, {9: 1.0}])):
        assert rows.offsets.tolist() == [0, 2, 2, 3] and rows.terms.tolist() == [2, 5, 9]
        assert rows.weights.tolist() == [0.5, 0.25, 1.0] and rows.ids.tolist() == [0, 1, 2]


def test_weights_that_float16_rounds_to_nothing_are_no_terms():
    rows = SparseRows.from_bags([{1: 1e-9, 2: 0.5}, {3: 0.0}])
    assert rows.offsets.tolist() == [0, 1, 1] and rows.terms.tolist() == [2]


@pytest.mark.parametrize("ids", [None, [f"image {number}" for number in range(7)]])
def test_some_rows_and_all_of_them_again(dense, ids):
    rows = SparseRows.from_dense(dense, ids)
    order = np.array([6, 0, 5, 5, 1])
    taken = rows.take(order)
    assert np.array_equal(as_dense(taken), dense[order])
    assert taken.ids.tolist() == [rows.ids.tolist()[number] for number in order]
    assert [len(part.ids) for part in (rows.between(2, 5), rows.between(3, 3))] == [3, 0]
    assert np.array_equal(as_dense(rows.between(2, 5)), dense[2:5])
    assert np.shares_memory(rows.between(2, 5).weights, rows.weights)
    whole = SparseRows.concatenate([rows.between(0, 3), rows.between(3, 3), rows.between(3, 7)])
    assert np.array_equal(as_dense(whole), dense) and whole.ids.tolist() == rows.ids.tolist()


def test_selected_terms(dense):
    rows = SparseRows.from_dense(dense)
    heavy = rows.select(rows.weights > 0.5)
    assert np.array_equal(as_dense(heavy), np.where(dense > 0.5, dense, 0)) and len(heavy) == 7
    assert rows.select(rows.weights > 0) is rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3, 12, 100])
def test_top_k_is_a_sort_of_each_row(dense, k, dtype):
    """Of equal weights the lower terms stay, in their order."""
    rows = SparseRows.from_dense(dense)
    cut = replace(rows, weights=rows.weights.astype(dtype)).top_k(k)
    assert cut.weights.dtype == dtype and (np.diff(cut.offsets) <= k).all()
    for row, (_, terms, weights) in zip(dense, cut.documents(), strict=True):
        heaviest = sorted(np.flatnonzero(row), key=lambda term: (-row[term], term))[:k]
        assert terms.tolist() == sorted(heaviest) and weights.tolist() == row[terms].tolist()


def test_a_broken_weight_is_among_the_heaviest():
    rows = replace(SparseRows.from_bags([{0: 3.0, 1: 1.0, 2: 2.0}]), weights=np.array([3.0, np.nan, 2.0]))
    assert rows.top_k(1).terms.tolist() == [1] and rows.top_k(2).terms.tolist() == [0, 1]


@pytest.mark.parametrize(
    "bag, message",
    [
        ({1.9: 0.5}, "the term 1.9; a term must be a whole number"),
        ({"a": 0.5}, "the term 'a'; a term must be a whole number"),
        ({10**30: 0.5}, "a term must be 0 to 4194303"),
        ({-1: 0.5}, "id 0 holds -1; a term must be 0"),
    ],
)
def test_bags_of_other_terms_are_refused(bag, message):
    assert SparseRows.from_bags([{np.uint64(7): 0.5, 3: 0.5}]).terms.tolist() == [7, 3]
    with pytest.raises(IndexingError, match=message):
        SparseRows.from_bags([bag])


@pytest.mark.parametrize(
    "arrays, message",
    [
        (([1], [0, 1, 2], [1, 2], [0.5, 0.5]), "1 ids, 3 offsets, 2 terms and 2 weights do not belong together"),
        (([1], [0, 2], [1, 2], [0.5]), "1 ids, 2 offsets, 2 terms and 1 weights do not belong together"),
        (([1], [0, 1], [1, 2], [0.5, 0.5]), "offsets must rise from 0 to the number of terms, 2"),
        (([1, 2], [0, 2, 1], [1], [0.5]), "offsets must rise from 0 to the number of terms, 1"),
        (([1], [0, 1], [1.5], [0.5]), "mine: terms are float64; they must be whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(IndexingError, match=message):
        SparseRows.from_arrays(*arrays, source="mine")


SPARSE = {
    "coo": lambda table: table.to_sparse(), "csr": lambda table: table.to_sparse_csr(),
    "csc": lambda table: table.to_sparse_csc(), "half": lambda table: table.half().to_sparse(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_tensors_become_rows(dense, kind):
    rows = SparseRows.from_dense(SPARSE[kind](torch.from_numpy(dense)))
    assert np.array_equal(as_dense(rows), dense) and rows.terms.dtype == np.uint32


def test_coordinates_that_come_twice_are_added_and_zeros_left_out():
    tensor = torch.sparse_coo_tensor([[1, 1, 0, 2], [3, 3, 5, 1]], [0.25, 0.5, 1.0, 0.0], (4, 9))
    rows = SparseRows.from_dense(tensor, ["a", "b", "c", "d"])
    assert rows.offsets.tolist() == [0, 1, 2, 2, 2] and rows.terms.tolist() == [5, 3]
    assert rows.weights.tolist() == [1.0, 0.75]


def test_scipy_matrices_become_rows(dense):
    scipy = pytest.importorskip("scipy.sparse")
    for make in (scipy.csr_matrix, scipy.coo_matrix, scipy.csc_array):
        assert np.array_equal(as_dense(SparseRows.from_dense(make(dense))), dense)


@pytest.mark.parametrize("vectors", [
    np.ones(5), np.ones((2, 2, 2)), torch.ones(5), torch.ones(5).to_sparse(), np.ones((2, 2), complex),
    torch.ones(2, 2, dtype=torch.complex64), np.array([["a"]]), np.array([[None]]), [[1, 2], [3]], 7, "abc",
])  # fmt: skip
def test_other_vectors_are_refused_in_one_line(vectors):
    with pytest.raises(IndexingError) as refused:
        SparseRows.from_dense(vectors)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("offsets, terms, weights", [
    ([0, 1.5], [1], [1.0]), ([0, 1], [1.0], [1.0]), ([0, 1], [1], ["x"]), ([0, 1], [1], [1j]), ([0, 1], [[1]], [1.0]),
    ([0, 1], 1, [1.0]), ([0, 1], [1], [None]), ([0, 1], [[1], [1, 2]], [1.0]),
])  # fmt: skip
def test_other_arrays_are_refused_in_one_line(offsets, terms, weights):
    with pytest.raises(IndexingError, match="mine: ") as refused:
        SparseRows.from_arrays([1], offsets, terms, weights, "mine")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ids", ["abc", b"abc", 5, {"a": 1}, None, 2.5])
def test_one_id_is_no_list_of_ids(ids):
    with pytest.raises(IndexingError):
        SparseRows.from_arrays(ids, [0, 1], [1], [1.0])
