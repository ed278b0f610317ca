"""Rows and shards: what comes in is checked, and named where it is wrong."""

import numpy as np
import pyarrow as pa
import pytest

from lexlip.index import IndexingError, SparseRows, build, read_shards, shards, write_shard
from lexlip_data.sources import ipc_bounds


def test_shards_come_back(tmp_path, rows):
    batches = [rows(50, 40, 8, ids=[f"p{n}" for n in range(50)]), rows(1, 40, 8, seed=3, ids=["q"])]
    write_shard(tmp_path / "a.arrow", batches)
    for batch, again in zip(batches, read_shards([tmp_path]), strict=True):
        assert again.ids.tolist() == batch.ids.tolist()
        for name in ("offsets", "terms", "weights"):
            assert np.array_equal(getattr(again, name), getattr(batch, name))
        assert again.weights.dtype == np.float16 and again.terms.dtype == np.uint32


def test_a_long_shard_is_mapped_anew_now_and_then(tmp_path, rows, monkeypatch):
    """So that pages that were read do not stay. It must be the same file."""
    write_shard(path := tmp_path / "a.arrow", [rows(3, 40, 8, ids=["a", "b", "c"])])
    with shards._opened(path) as reader:
        monkeypatch.setattr(shards, "_MAPPED", reader.get_batch(0).get_total_buffer_size() // 2)
    opened, maps = shards._opened, []
    monkeypatch.setattr(shards, "_opened", lambda path: maps.append(path) or opened(path))
    for count in (1, 4, 5):
        write_shard(path, [rows(3, 40, 8, seed=n, ids=[f"{n}.{i}" for i in range(3)]) for n in range(count)])
        maps.clear()
        assert [str(batch.ids[0]) for batch in read_shards([path])] == [f"{n}.0" for n in range(count)]
        assert len(maps) == count
    reading = read_shards([path])
    assert str(next(reading).ids[0]) == "0.0"
    write_shard(path, [rows(3, 40, 8, ids=["x", "y", "z"])] * 5)
    with pytest.raises(IndexingError, match="a.arrow was written to while it was read"):
        next(reading)


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


LISTS = {
    "list": pa.list_, "large": pa.large_list, "view": pa.list_view, "large view": pa.large_list_view,
    "fixed": lambda kind: pa.list_(kind, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("cut", [False, True])
def test_lists_of_any_kind(tmp_path, kind, cut):
    """As Polars and others write them; also a part of a larger array."""
    make = lambda values, value: pa.array(values, LISTS[kind](value))
    terms, weights = [[9, 8], [1, 2], [3, 4]], [[0.75, 1.0], [0.5, 0.25], [1.0, 2.0]]
    part = slice(1, None) if cut else slice(None)
    write(tmp_path / "a.arrow", id=["x", "y", "z"][part], terms=make(terms, pa.uint32())[part],
          weights=make(weights, pa.float32())[part])  # fmt: skip
    (rows,) = read_shards([tmp_path / "a.arrow"])
    assert rows.ids.tolist() == ["x", "y", "z"][part]
    assert rows.terms.tolist() == sum(terms[part], []) and rows.weights.tolist() == sum(weights[part], [])


def test_views_out_of_order_and_dictionaries(tmp_path):
    values = pa.array([1, 2, 3, 4], pa.uint32())
    heavy = pa.array([1.0, 2.0, 3.0, 4.0], pa.float32())
    places = pa.array([2, 0], pa.int32()), pa.array([2, 1], pa.int32())
    names = pa.array(["x", "a name of more than twelve bytes"], pa.string_view())
    write(tmp_path / "a.arrow", id=names, terms=pa.ListViewArray.from_arrays(*places, values),
          weights=pa.ListViewArray.from_arrays(*places, heavy))  # fmt: skip
    (rows,) = read_shards([tmp_path / "a.arrow"])
    assert rows.ids.tolist() == names.to_pylist()
    assert rows.terms.tolist() == [3, 4, 1] and rows.weights.tolist() == [3.0, 4.0, 1.0]

    of = lambda lists, kind: pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), pa.array(lists, pa.list_(kind)))
    write(tmp_path / "b.arrow", id=pa.array([5, 6, 7]).dictionary_encode(), terms=of([[1], [2, 3]], pa.uint16()),
          weights=of([[1.0], [2.0, 3.0]], pa.float32()))  # fmt: skip
    (rows,) = read_shards([tmp_path / "b.arrow"])
    assert rows.ids.tolist() == [5, 6, 7] and rows.terms.tolist() == [2, 3, 1, 2, 3]


def test_offsets_are_validated_before_they_are_used(tmp_path):
    """In right files, numbers that lead outside: refused by the file's name, whatever they are."""
    offsets, ends = np.arange(0, 501, 5, dtype=np.int32), np.arange(0, 801, 8, dtype=np.int32)
    lists = lambda values: pa.ListArray.from_arrays(pa.array(offsets), values)
    names = pa.array([f"id{n:06}" for n in range(100)])
    write(tmp_path / "good.arrow", id=names, terms=lists(pa.array(np.tile(np.arange(5, dtype=np.uint32), 100))),
          weights=lists(pa.array(np.ones(500, np.float16))))  # fmt: skip
    good = (tmp_path / "good.arrow").read_bytes()
    assert len(next(read_shards([tmp_path / "good.arrow"]))) == 100
    for old in (offsets, ends):
        for place, value in ((100, 2**31 - 1), (50, 2**31 - 1), (50, -(2**31)), (0, -1000), (50, 1), (100, 10**8)):
            bad = old.copy()
            bad[place] = value
            assert good.count(old.tobytes())
            (tmp_path / "bad.arrow").write_bytes(good.replace(old.tobytes(), bad.tobytes()))
            with pytest.raises(IndexingError, match="bad.arrow") as refused:
                list(read_shards([tmp_path / "bad.arrow"]))
            assert "\n" not in str(refused.value)
    (tmp_path / "bad.arrow").write_bytes(good.replace(b"id0", b"\xff\xfe0"))
    with pytest.raises(IndexingError, match="bad.arrow .*UTF8"):
        list(read_shards([tmp_path / "bad.arrow"]))


def test_values_that_rows_share_are_bounded(tmp_path, monkeypatch):
    from lexlip import sparse
    from lexlip.index import shards

    monkeypatch.setattr(shards, "_SHARED", 100)
    places = pa.array([0] * 300, pa.int32()), pa.array([50] * 300, pa.int32())
    lists = {
        "terms": pa.ListViewArray.from_arrays(*places, pa.array(range(50), pa.uint32())),
        "weights": pa.ListViewArray.from_arrays(*places, pa.array([1.0] * 50)),
    }
    write(tmp_path / "a.arrow", id=list(range(300)), **lists)
    with pytest.raises(IndexingError, match="a.arrow: the lists of column terms share"):
        list(read_shards([tmp_path / "a.arrow"]))
    monkeypatch.setattr(shards, "_SHARED", 1 << 20)
    monkeypatch.setattr(sparse, "_UNPACKED", 1000)
    long = pa.array(["x" * 50] * 300)
    for ids in (long.dictionary_encode(), long.cast(pa.string_view())):
        write(tmp_path / "a.arrow", id=ids, **lists)
        with pytest.raises(IndexingError, match="texts that share bytes"):
            list(read_shards([tmp_path / "a.arrow"]))


@pytest.mark.parametrize("kind", ["stream", "parquet", "feather", "noise"])
def test_other_files_are_named_as_what_they_are(tmp_path, kind):
    table = pa.table({"id": [1], "terms": [[1]], "weights": [[1.0]]})
    path = tmp_path / "a.arrow"
    if kind == "stream":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        path.write_bytes({"feather": b"FEA1" + bytes(40), "noise": b"hello" * 40}[kind])
    message = {"stream": "an Arrow stream, not", "parquet": "a Parquet file, not", "feather": "a Feather file"}
    with pytest.raises(IndexingError, match=f"a.arrow is {message.get(kind, 'no Arrow IPC file')}"):
        list(read_shards([path]))


@pytest.mark.parametrize("call", [
    lambda rows, folder: list(read_shards("a.arrow")), lambda rows, folder: list(read_shards(folder)),
    lambda rows, folder: build(folder, rows), lambda rows, folder: build(folder, "a.arrow"),
    lambda rows, folder: build(folder, [np.eye(3)]), lambda rows, folder: build(folder, 5),
    lambda rows, folder: SparseRows.from_dense(np.eye(3), "abc"), lambda rows, folder: SparseRows.from_bags({1: 0.5}),
    lambda rows, folder: SparseRows.from_bags([[1, 2]]), lambda rows, folder: SparseRows.from_bags([{1: "x"}]),
])  # fmt: skip
def test_one_thing_is_no_list_of_things(tmp_path, call):
    with pytest.raises(IndexingError) as refused:
        call(SparseRows.from_bags([{1: 1.0}]), tmp_path / "index")
    assert "\n" not in str(refused.value)


def test_ids_with_a_prefix(tmp_path):
    write_shard(tmp_path / "a.arrow", [SparseRows.from_bags([{1: 1.0}] * 2, ["x", "y"])])
    write_shard(tmp_path / "b.arrow", [SparseRows.from_bags([{1: 1.0}] * 2, [3, -4])])
    found = [rows.ids.to_pylist() for rows in read_shards([tmp_path], id_prefix="old/")]
    assert found == [["old/x", "old/y"], ["old/3", "old/-4"]]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_shard_out_of_proportion(tmp_path, monkeypatch, codec):
    """Said from its metadata, before anything is unpacked."""
    monkeypatch.setattr(ipc_bounds, "MOST_SMALL", 1 << 20)
    lists = pa.array([0, 1 << 19], pa.int32())
    weights = pa.ListArray.from_arrays(lists, pa.array(np.ones(1 << 19, np.float16)))
    terms = pa.ListArray.from_arrays(lists, pa.array(np.zeros(1 << 19, np.uint16)))
    batch = pa.record_batch({"id": pa.array(["x"]), "terms": terms, "weights": weights})
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), batch.schema, options=options) as writer:
        writer.write_batch(batch)
    with pytest.raises(IndexingError, match=r"a\.arrow: its [\d,]+ bytes would unpack to 2,\d+,\d+"):
        next(read_shards([tmp_path / "a.arrow"]))


def test_hidden_files_beside_shards_are_passed_over_and_counted(tmp_path, rows, caplog):
    write_shard(tmp_path / "a.arrow", [rows(3, 40, 8, ids=["a", "b", "c"])])
    (tmp_path / "._a.arrow").write_bytes(b"\0\x05\x16\x07")  # of macOS
    assert sum(map(len, read_shards([tmp_path]))) == 3
    assert "1 hidden files were passed over" in caplog.text
