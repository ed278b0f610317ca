"""Rows and shards: what comes in is checked, and named where it is wrong."""

import numpy as np
import pyarrow as pa
import pytest

from lexlip.index import IndexingError, SparseRows, build, read_shards, write_shard


def test_shards_come_back(tmp_path, rows):
    batches = [rows(50, 40, 8, ids=[f"p{n}" for n in range(50)]), rows(1, 40, 8, seed=3, ids=["q"])]
    write_shard(tmp_path / "a.arrow", batches)
    for batch, again in zip(batches, read_shards([tmp_path]), strict=True):
        assert again.ids.tolist() == batch.ids.tolist()
        for name in ("offsets", "terms", "weights"):
            assert np.array_equal(getattr(again, name), getattr(batch, name))
        assert again.weights.dtype == np.float16 and again.terms.dtype == np.uint32


@pytest.mark.parametrize("terms", [pa.uint16(), pa.uint32(), pa.int64()])
@pytest.mark.parametrize("weights", [pa.float16(), pa.float32(), pa.float64()])
def test_types_of_columns(tmp_path, terms, weights):
    write(tmp_path / "a.arrow", id=["x"], terms=pa.array([[1, 2]], pa.list_(terms)),
          weights=pa.array([np.array([0.5, 0.25], weights.to_pandas_dtype())], pa.list_(weights)))  # fmt: skip
    (rows,) = read_shards([tmp_path / "a.arrow"])
    assert rows.terms.tolist() == [1, 2] and rows.weights.tolist() == [0.5, 0.25]


def write(path, **columns):
    batch = pa.record_batch(
        {name: pa.array(values) if isinstance(values, list) else values for name, values in columns.items()}
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"id": ["x"], "terms": [[1]]}, "no column weights"),
        ({"id": ["x"], "terms": [[1, 2]], "weights": [[0.5]]}, "id x has 2 terms but 1 weights"),
        ({"id": ["x"], "terms": [[1]], "weights": [[-0.5]]}, "id x holds -0.5"),
        ({"id": ["x", "y"], "terms": [[1], [2]], "weights": [[0.5], [float("nan")]]}, "id y holds nan"),
        ({"id": ["x"], "terms": [[1]], "weights": [[1e6]]}, "id x holds 1000000.0; a weight must be 0 to 65504"),
        ({"id": ["x"], "terms": [[-1]], "weights": [[0.5]]}, "id x holds -1; a term must be"),
        ({"id": ["x"], "terms": [[2**22]], "weights": [[0.5]]}, "id x holds 4194304; a term must be"),
        ({"id": ["x"], "terms": [1], "weights": [[0.5]]}, "column terms is int64; it must be a list"),
        ({"id": ["x"], "terms": [[None]], "weights": [[0.5]]}, "column terms has missing values"),
        ({"id": [None], "terms": [[1]], "weights": [[0.5]]}, "row 0 has no id"),
        ({"id": ["x", "y", "x"], "terms": [[1]] * 3, "weights": [[0.5]] * 3}, "id x comes twice"),
        ({"id": ["x"], "terms": [[4, 4]], "weights": [[0.5, 0.5]]}, "id x holds term 4 twice"),
    ],
)
def test_bad_shards_are_named(tmp_path, columns, message):
    write(tmp_path / "a.arrow", **columns)
    with pytest.raises(IndexingError, match=message):
        build(tmp_path / "index", read_shards([tmp_path]))
    assert {path.name for path in (tmp_path / "index").iterdir()} <= {"write.lock"}  # nothing is left behind


def test_files_that_are_no_shards_are_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 but not")
    with pytest.raises(IndexingError, match="a.arrow is no Arrow IPC file"):
        list(read_shards([tmp_path]))
    with pytest.raises(IndexingError, match="no such file"):
        list(read_shards([tmp_path / "b"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexingError, match="holds no"):
        list(read_shards([tmp_path / "empty"]))


def test_ids_of_one_index_are_of_one_kind(tmp_path):
    numbers, names = SparseRows.from_bags([{1: 1.0}]), SparseRows.from_bags([{1: 1.0}], ["a"])
    with pytest.raises(IndexingError, match="ids are string, those before were int"):
        build(tmp_path, [numbers, names])


def test_an_id_in_two_segments_of_one_build_is_named(tmp_path):
    bags = SparseRows.from_bags([{1: 1.0}] * 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 2])
    with pytest.raises(IndexingError, match="id 2 comes twice"):
        build(tmp_path, [bags], segment_documents=4)
