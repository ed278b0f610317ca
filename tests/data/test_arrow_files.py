"""Reading Arrow files: ours, ViLT's, and broken ones."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from lexlip_data.arrow import ArrowSource, find_shards
from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.registry import open_split, require_data_set


def save(path, table: pa.Table, rows_per_batch: int | None = None):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return path


def table(n=5, first=0, **columns) -> pa.Table:
    content = {
        "image": pa.array([b"picture %d" % i for i in range(first, first + n)], pa.binary()),
        "caption": [[f"caption {k} of {i}" for k in range(1 + i % 3)] for i in range(first, first + n)],
        "image_id": [f"{i}.jpg" for i in range(first, first + n)],
        "split": ["train"] * n,
        **columns,
    }
    return pa.table({key: value for key, value in content.items() if value is not None})


def everything(source):
    return [(bytes(source.image_bytes(i)), source.captions(i), source.image_id(i)) for i in range(len(source))]


def test_shards_and_batches_read_as_one(tmp_path):
    whole = ArrowSource("x", "train", [save(tmp_path / "w.arrow", table(23))])
    parts = [
        save(tmp_path / f"p_{k}.arrow", table(n, first), 3) for k, (n, first) in enumerate([(10, 0), (0, 10), (13, 10)])
    ]
    source = ArrowSource("x", "train", parts)
    assert len(source) == 23 and everything(source) == everything(whole)
    assert source.caption_counts.tolist() == [1 + i % 3 for i in range(23)]
    assert "p_2.arrow, record batch 4, row 0" in source.where(22)
    capped = ArrowSource("x", "train", parts, max_images=11)
    assert everything(capped) == everything(whole)[:11]
    data = pickle.dumps(capped)
    assert len(data) < 1000 and everything(pickle.loads(data)) == everything(capped)
    with pytest.raises(IndexError):
        source.captions(23)


def test_reading_copies_nothing(tmp_path):
    path = save(tmp_path / "w.arrow", table(3, image=pa.array([b"x" * 1_000_000] * 3, pa.binary())))
    source = ArrowSource("x", "train", [path])
    before = pa.total_allocated_bytes()
    views = [source.image_bytes(i) for i in range(3)]
    assert pa.total_allocated_bytes() - before < 10_000 and {len(view) for view in views} == {1_000_000}


def test_a_file_as_vilt_writes_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [[b"picture %d" % i, [f"caption {i}", "another"], f"{i}.jpg", "train"] for i in range(7)]
    frame = pandas.DataFrame(rows, columns=["image", "caption", "image_id", "split"])
    written = pa.Table.from_pandas(frame)
    assert b"pandas" in written.schema.metadata
    with pa.OSFile(str(tmp_path / "coco_caption_karpathy_train.arrow"), "wb") as sink:
        with pa.RecordBatchFileWriter(sink, written.schema) as writer:
            writer.write_table(written)
    (source,) = open_split(tmp_path, "coco", "train")
    assert everything(source) == [(row[0], row[1], row[2]) for row in rows]


@pytest.mark.parametrize(
    "columns",
    [
        {"image_id": pa.array(range(5), pa.int64())},
        {"caption": [f"only {i}" for i in range(5)]},
        {"caption": pa.array([["a"]] * 5, pa.large_list(pa.large_string()))},
        {"image": pa.array([b"x"] * 5, pa.large_binary())},
        {"split": None, "width": list(range(5)), "__index_level_0__": list(range(5))},
    ],
    ids=["int ids", "plain captions", "large lists", "large binary", "other columns"],
)
def test_variants_of_columns(tmp_path, columns):
    source = ArrowSource("x", "train", [save(tmp_path / "w.arrow", table(**columns))])
    assert len(everything(source)) == 5 and source.caption_counts.sum() >= 5
    assert all(isinstance(caption, str) for i in range(5) for caption in source.captions(i))
    assert all(isinstance(source.image_id(i), str) for i in range(5))


def test_nulls(tmp_path):
    columns = {"image": pa.array([None, b"x"], pa.binary()), "caption": pa.array([None, ["a"]], pa.list_(pa.string()))}
    source = ArrowSource("x", "train", [save(tmp_path / "w.arrow", table(2, **columns))])
    assert source.caption_counts.tolist() == [0, 1] and source.captions(0) == []
    with pytest.raises(BrokenImage, match="null"):
        source.image_bytes(0)


def test_long_captions(tmp_path):
    source = ArrowSource("x", "train", [save(tmp_path / "w.arrow", table(2, long_caption=[["long"], []]))])
    assert [source.long_captions(i) for i in range(2)] == [["long"], []]
    assert ArrowSource("x", "train", [save(tmp_path / "v.arrow", table(2))]).long_captions(0) == []


def test_unusable_files(tmp_path):
    path = save(tmp_path / "w.arrow", table())
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="w.arrow: not a complete Arrow IPC file"):
            ArrowSource("x", "train", [path])
    with pytest.raises(DataError, match="no such file"):
        ArrowSource("x", "train", [tmp_path / "none.arrow"])
    with pytest.raises(DataError, match="no column caption, image_id; the columns are image"):
        ArrowSource("x", "train", [save(path, table().select(["image"]))])
    with pytest.raises(DataError, match="column image is string"):
        ArrowSource("x", "train", [save(path, table(image=["a"] * 5))])


def test_find_shards(tmp_path):
    for name in ("sbu_10", "sbu_9", *(f"sbu_{i}" for i in range(9)), "sbu_old", "xsbu_0"):
        (tmp_path / f"{name}.arrow").touch()
    assert [path.name for path in find_shards(tmp_path, "sbu")] == [f"sbu_{i}.arrow" for i in range(11)]
    assert find_shards(tmp_path, "gcc") == find_shards(tmp_path / "none", "sbu") == []
    (tmp_path / "sbu_4.arrow").unlink()
    with pytest.raises(DataError, match="sbu_4.arrow is missing"):
        find_shards(tmp_path, "sbu")
    (tmp_path / "sbu_4.arrow").touch()
    (tmp_path / "sbu.arrow").touch()
    with pytest.raises(DataError, match="both sbu.arrow and numbered shards"):
        find_shards(tmp_path, "sbu")


def test_registry_prefers_arrow_and_joins_restval(tmp_path, make_folder, caplog):
    make_folder("COCO", "coco_train.tsv", pictures=3)
    assert len(open_split(tmp_path, "coco", "train")[0]) == 3
    save(tmp_path / "coco_caption_karpathy_train.arrow", table(5))
    assert len(open_split(tmp_path, "coco", "train")[0]) == 5
    assert "karpathy_restval" in caplog.text
    save(tmp_path / "coco_caption_karpathy_restval.arrow", table(4, 5))
    assert len(open_split(tmp_path, "coco", "train")[0]) == 9
    assert len(open_split(tmp_path, "coco", "train", max_images={"coco": 7})[0]) == 7
    assert len(open_split(tmp_path, "coco", "train", max_images={"gcc": 1})[0]) == 9
    (tmp_path / "coco_caption_karpathy_train.arrow").unlink()
    with pytest.raises(DataError, match="restval.arrow but not coco_caption_karpathy_train"):
        open_split(tmp_path, "coco", "train")


@pytest.mark.parametrize(
    ("name", "folder", "file", "split"),
    [
        ("coco", "COCO", "coco_val.tsv", "val"),
        ("f30k", "F30k", "f30k_test.tsv", "test"),
        ("gcc", "CC4M", "Train_GCC-training_output.csv", "train"),
        ("gcc", "CC4M", "Validation_GCC-1.1.0-Validation_output.csv", "val"),
        ("sbu", "sbu", "sbu_out.tsv", "train"),
        ("mine", "mine", "mine_val.tsv", "val"),
    ],
)
def test_registry_reads_every_table_layout(tmp_path, make_folder, name, folder, file, split):
    make_folder(folder, file, with_id=name != "gcc")
    require_data_set(tmp_path, name)
    (source,) = open_split(tmp_path, name, split)
    assert len(source) == 6 and source.captions(0)[0].startswith("a black dog") and source.image_bytes(5)
    assert open_split(tmp_path, "sbu", "val") == []


@pytest.mark.parametrize("prefix", ["conceptual_caption_train_0", "sbu_0", "mine_test", "mine_test_0"])
def test_registry_reads_every_arrow_name(tmp_path, prefix):
    save(tmp_path / f"{prefix}.arrow", table())
    name = {"conc": "gcc", "sbu_": "sbu", "mine": "mine"}[prefix[:4]]
    (source,) = open_split(tmp_path, name, "test" if name == "mine" else "train")
    assert len(source) == 5


def test_registry_own_files(tmp_path, make_folder):
    path = make_folder("elsewhere", "pairs.tsv", pictures=3)
    save(tmp_path / "odd_0.arrow", table(4))
    own = {"mine": {"train": ["odd", str(path.relative_to(tmp_path))], "val": "odd_0.arrow"}}
    assert [len(source) for source in open_split(tmp_path, "mine", "train", own)] == [4, 3]
    assert [len(source) for source in open_split(tmp_path, "mine", "train", own, max_images=5)] == [4, 1]
    assert [len(source) for source in open_split(tmp_path, "mine", "val", own)] == [4]
    assert open_split(tmp_path, "mine", "test", own) == []
    with pytest.raises(DataError, match="neither gone.arrow nor gone_0.arrow"):
        open_split(tmp_path, "mine", "train", {"mine": {"train": ["gone"]}})
    with pytest.raises(DataError, match="split 'trian'"):
        open_split(tmp_path, "mine", "train", {"mine": {"trian": ["odd"]}})


def test_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="data set f30k.*f30k_caption_karpathy_train.*F30k/f30k_train.tsv") as raised:
        require_data_set(tmp_path, "f30k")
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(DataError, match="does not exist"):
        require_data_set(tmp_path / "nowhere", "f30k")
    with pytest.raises(DataError, match="max_images of coco is 0"):
        open_split(tmp_path, "coco", "train", max_images=0)


def private_bytes() -> int:
    """Memory of this process that is no file's: mapped pages of the data do not count."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


def test_memory_does_not_grow_over_an_epoch(tmp_path):
    try:
        private_bytes()
    except (OSError, KeyError):
        pytest.skip("needs Linux's /proc")
    rng = np.random.default_rng(0)
    pictures = pa.array([rng.bytes(20_000) for _ in range(2000)], pa.binary())
    source = ArrowSource("x", "train", [save(tmp_path / "w.arrow", table(2000, image=pictures), 256)])

    def epoch() -> int:
        order = rng.permutation(len(source))
        return sum(len(source.image_bytes(i)) + len(source.captions(i)) + len(source.image_id(i)) for i in order)

    epoch()
    before = private_bytes()
    for _ in range(3):
        epoch()
    assert private_bytes() - before < 4_000_000  # the data are 40 MB
