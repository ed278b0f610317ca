"""Reading Arrow files: ours, ViLT's, and broken ones."""

import os
import pickle
import resource

import numpy as np
import pyarrow as pa
import pytest

from lexlip_data.errors import BrokenImage, BrokenSample, DataError
from lexlip_data.sources.arrow import ArrowSource, find_arrow_files
from lexlip_data.sources.registry import open_split, require_data_set


@pytest.fixture
def opened(tmp_path, save):
    """opened(table, rows per record batch): the source of the file w.arrow that holds the table."""
    return lambda *table_and_rows: ArrowSource("x", "train", [save(tmp_path / "w.arrow", *table_and_rows)])


def table(n=5, first=0, **columns) -> pa.Table:
    content = {
        "image": pa.array([b"image %d" % i for i in range(first, first + n)], pa.binary()),
        "caption": [[f"caption {k} of {i}" for k in range(1 + i % 3)] for i in range(first, first + n)],
        "image_id": [f"{i}.jpg" for i in range(first, first + n)],
        "split": ["train"] * n,
        **columns,
    }
    return pa.table({key: value for key, value in content.items() if value is not None})


def everything(source):
    return [(bytes(source.image_bytes(i)), source.captions(i), source.image_id(i)) for i in range(len(source))]


def test_shards_and_batches_read_as_one(tmp_path, save, opened):
    whole = opened(table(23))
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


def test_reading_copies_nothing(opened):
    source = opened(table(3, image=pa.array([b"x" * 1_000_000] * 3, pa.binary())))
    before = pa.total_allocated_bytes()
    views = [source.image_bytes(i) for i in range(3)]
    assert pa.total_allocated_bytes() - before < 10_000 and {len(view) for view in views} == {1_000_000}


def test_a_file_as_vilt_writes_it(tmp_path, save):
    pandas = pytest.importorskip("pandas")
    rows = [[b"image %d" % i, [f"caption {i}", "another"], f"{i}.jpg", "train"] for i in range(7)]
    frame = pandas.DataFrame(rows, columns=["image", "caption", "image_id", "split"])
    written = pa.Table.from_pandas(frame)
    assert b"pandas" in written.schema.metadata
    save(tmp_path / "coco_caption_karpathy_train.arrow", written)
    (source,) = open_split(tmp_path, "coco", "train")
    assert everything(source) == [(row[0], row[1], row[2]) for row in rows]


def test_the_official_sets_have_their_splits(tmp_path, save):
    """GCC has no test split: the official code takes val's images for one."""
    save(tmp_path / "conceptual_caption_val_0.arrow", table())
    assert len(open_split(tmp_path, "gcc", "val")[0]) == 5
    assert open_split(tmp_path, "gcc", "test") == open_split(tmp_path, "sbu", "val") == []


def test_visual_genome_as_vilt_writes_it(tmp_path, save):
    """Region descriptions with boxes, and no split: all of it is for training."""
    boxes = {"split": None, "width": [[3]] * 5, "height": [[4]] * 5, "x": [[0]] * 5, "y": [[1]] * 5}
    save(tmp_path / "vg.arrow", table(**boxes))
    (source,) = open_split(tmp_path, "vg", "train")
    assert everything(source) == everything(ArrowSource("x", "train", [save(tmp_path / "w.arrow", table())]))
    assert open_split(tmp_path, "vg", "val") == []
    require_data_set(tmp_path, "vg")
    (tmp_path / "vg.arrow").rename(tmp_path / "vg_train.arrow")  # as the converter here would call it
    assert len(open_split(tmp_path, "vg", "train")[0]) == 5
    with pytest.raises(DataError, match=r"looked for vg.arrow, vg_train\[_0\].arrow"):
        require_data_set(tmp_path / "none", "vg")


def test_an_empty_last_shard_as_vilt_writes_it(tmp_path, save):
    """A multiple of 100,000 images: the last file has no rows, and pandas gives its columns no type."""
    pandas = pytest.importorskip("pandas")
    save(tmp_path / "sbu_0.arrow", table())
    empty = pa.Table.from_pandas(pandas.DataFrame([], columns=["image", "caption", "image_id", "split"]))
    assert pa.types.is_null(empty.schema.field("image").type)
    for written in (empty, pa.table({name: pa.array([], pa.null()) for name in ("image", "caption", "image_id")})):
        save(tmp_path / "sbu_1.arrow", written)
        (source,) = open_split(tmp_path, "sbu", "train")
        assert len(source) == 5 and source.left_out == [] and len(everything(source)) == 5
    save(tmp_path / "sbu_1.arrow", pa.table({name: pa.nulls(2) for name in ("image", "caption", "image_id")}))
    with pytest.raises(DataError, match="sbu_1.arrow: column image is null, not binary"):
        open_split(tmp_path, "sbu", "train")


IMAGES, CAPTIONS, IDS = (table()[name].to_pylist() for name in ("image", "caption", "image_id"))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image_id": pa.array(range(5), pa.int64())}, {"ids": list("01234")}),
        ({"image_id": pa.array(IDS).dictionary_encode()}, {}),
        ({"caption": [f"only {i}" for i in range(5)]}, {"captions": [[f"only {i}"] for i in range(5)]}),
        ({"caption": pa.array([["a"]] * 5, pa.large_list(pa.large_string()))}, {"captions": [["a"]] * 5}),
        ({"image": pa.array([b"x"] * 5, pa.large_binary())}, {"images": [b"x"] * 5}),
        ({"split": None, "width": list(range(5)), "__index_level_0__": list(range(5))}, {}),
    ],
    ids=["int ids", "dictionary", "plain captions", "large lists", "large binary", "other columns"],
)
def test_variants_of_columns(opened, columns, expected):
    source = opened(table(**columns))
    images, captions, ids = zip(*everything(source), strict=True)
    wanted = {"images": IMAGES, "captions": CAPTIONS, "ids": IDS, **expected}
    assert {"images": list(images), "captions": list(captions), "ids": list(ids)} == wanted
    assert source.caption_counts.tolist() == [len(texts) for texts in wanted["captions"]]


def test_nulls(opened):
    columns = {"image": pa.array([None, b"x"], pa.binary()), "caption": pa.array([None, ["a"]], pa.list_(pa.string()))}
    source = opened(table(2, **columns))
    assert source.caption_counts.tolist() == [0, 1] and source.captions(0) == []
    with pytest.raises(BrokenImage, match="null"):
        source.image_bytes(0)


def test_long_captions(opened):
    source = opened(table(2, long_caption=[["long"], []]))
    assert [source.long_captions(i) for i in range(2)] == [["long"], []]
    assert opened(table(2)).long_captions(0) == []


def test_unusable_files(tmp_path, save, opened):
    path = save(tmp_path / "w.arrow", table())
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="w.arrow: not a complete Arrow IPC file"):
            ArrowSource("x", "train", [path])
    with pytest.raises(DataError, match="no such file"):
        ArrowSource("x", "train", [tmp_path / "none.arrow"])
    with pytest.raises(DataError, match="no column caption, image_id; the columns are image"):
        opened(table().select(["image"]))
    with pytest.raises(DataError, match="column image is string"):
        opened(table(image=["a"] * 5))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": pa.array(range(5))}, "column caption is int64; it must hold texts"),
        ({"caption": pa.array([[1]] * 5)}, "column caption is list<.*int64>"),
        ({"caption": pa.array([{"raw": "a"}] * 5)}, "column caption is struct"),
        ({"image_id": pa.array([0.5] * 5)}, "column image_id is double; it must hold texts or whole numbers"),
        ({"image_id": pa.array([["a"]] * 5)}, "column image_id is list"),
        ({"image": pa.array([[1]] * 5, pa.list_(pa.uint8()))}, "column image is list"),
        ({"long_caption": pa.array(range(5))}, "column long_caption is int64"),
    ],
)
def test_another_schema(opened, columns, message):
    with pytest.raises(DataError, match=f"w.arrow: {message}"):
        opened(table(**columns))


def test_a_column_twice(opened):
    twice = pa.table([*table().columns, table()["caption"]], names=[*table().column_names, "caption"])
    with pytest.raises(DataError, match="w.arrow: the column caption occurs twice"):
        opened(twice)


def with_offset(array: pa.Array, place: int, value: int, child: bool = False) -> pa.Array:
    """The array with one of its offsets changed; with child, one of its values'."""
    if child:
        values = with_offset(array.values, place, value)
        return pa.Array.from_buffers(array.type, len(array), array.buffers()[:2], children=[values])
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32).copy()
    offsets[place] = value
    buffers = [array.buffers()[0], pa.py_buffer(offsets), *array.buffers()[2:3]]
    if pa.types.is_list(array.type):
        return pa.Array.from_buffers(array.type, len(array), buffers[:2], children=[array.values])
    return pa.Array.from_buffers(array.type, len(array), buffers)


@pytest.mark.parametrize("value", [-1, 10**6, 2**31 - 1])
@pytest.mark.parametrize(("column", "child"), [("image", 0), ("image_id", 0), ("caption", 0), ("caption", 1)])
def test_an_offset_that_points_outside(tmp_path, column, child, value):
    arrays = {name: array.combine_chunks() for name, array in zip(table().column_names, table().columns, strict=True)}
    arrays[column] = with_offset(arrays[column], 2, value, bool(child))
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    with pa.OSFile(str(tmp_path / "w.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(
        DataError, match=rf"w.arrow: record batch 0 cannot be read \(column {column}: .*copy or convert"
    ):
        ArrowSource("x", "train", [tmp_path / "w.arrow"])


@pytest.mark.parametrize("what", ["image", "caption", "text", "image_id"])
def test_a_first_offset_that_points_outside(tmp_path, save, what):
    content = table(split=None)  # whose offsets are those of the ids
    path = save(tmp_path / "w.arrow", content)
    array = content["caption" if what == "text" else what].combine_chunks()
    offsets = np.frombuffer((array.values if what == "text" else array).buffers()[1], dtype=np.int32)
    changed = offsets.copy()
    changed[0] = 400_000_000
    data = path.read_bytes()
    assert data.count(offsets.tobytes()) == 1
    path.write_bytes(data.replace(offsets.tobytes(), changed.tobytes()))
    with pytest.raises(DataError, match="w.arrow: record batch 0 cannot be read"):
        ArrowSource("x", "train", [path])


def test_opening_reads_no_image_and_no_caption(opened):
    """Bytes that are neither an image nor UTF-8 do not matter until they are asked for."""
    captions = pa.array([[b"\xff\xfe", b"good"]] * 5, pa.list_(pa.binary())).view(pa.list_(pa.string()))
    source = opened(table(caption=captions))
    assert source.caption_counts.tolist() == [2] * 5 and source.caption(3, 1) == "good"
    with pytest.raises(BrokenSample, match="caption is not UTF-8 text"):
        source.caption(3, 0)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (None, "caption is null"), (" \n", "empty caption"), ("x" * 10_001, "caption of 10,001 characters"),
        ("a dog " * 2_000_000, "caption of 12,000,000 bytes"),
    ],
)  # fmt: skip
def test_a_caption_that_cannot_be_used(opened, caption, message):
    source = opened(table(caption=[["a", caption]] * 5))
    assert source.caption(0, 0) == "a"
    with pytest.raises(BrokenSample, match=message):
        source.caption(0, 1)


def test_an_id_that_cannot_be_used(opened):
    ids = pa.array([b"\xff", None, b"7" * 20_000, b"good", b""], pa.binary()).view(pa.string())
    source = opened(table(image_id=ids))
    for i, message in enumerate(("is not UTF-8", "is null", "of 20,000 bytes")):
        with pytest.raises(BrokenSample, match=f"image_id {message}"):
            source.image_id(i)
    assert source.image_id(3) == "good"


def test_images_without_a_caption_are_listed(opened):
    source = opened(table(caption=[["a"], [], ["b"], None, ["c"]]), 2)
    assert [item.reason.split("w.arrow, ")[1] for item in source.left_out] == [
        "record batch 0, row 1: no caption", "record batch 1, row 1: no caption",
    ]  # fmt: skip


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine_train.arrow")
    (tmp_path / "mine_val.arrow").mkdir()
    for split, kind in (("train", "a pipe"), ("val", "a folder")):
        with pytest.raises(DataError, match=f"mine_{split}.arrow: is {kind}, not a file"):
            open_split(tmp_path, "mine", split)


def test_an_absurd_shard_number_costs_nothing(tmp_path):
    (tmp_path / "sbu_99999999999.arrow").touch()
    with pytest.raises(DataError, match="sbu_0.arrow is missing"):
        find_arrow_files(tmp_path, "sbu")


def test_find_arrow_files(tmp_path):
    for name in ("sbu_10", "sbu_9", *(f"sbu_{i}" for i in range(9)), "sbu_old", "xsbu_0"):
        (tmp_path / f"{name}.arrow").touch()
    assert [path.name for path in find_arrow_files(tmp_path, "sbu")] == [f"sbu_{i}.arrow" for i in range(11)]
    assert find_arrow_files(tmp_path, "gcc") == find_arrow_files(tmp_path / "none", "sbu") == []
    (tmp_path / "sbu_4.arrow").unlink()
    with pytest.raises(DataError, match="sbu_4.arrow is missing"):
        find_arrow_files(tmp_path, "sbu")
    (tmp_path / "sbu_4.arrow").touch()
    (tmp_path / "sbu.arrow").touch()
    with pytest.raises(DataError, match="both sbu.arrow and numbered shards"):
        find_arrow_files(tmp_path, "sbu")


def test_registry_prefers_arrow_and_joins_restval(tmp_path, save, make_folder, caplog):
    make_folder("COCO", "coco_train.tsv", images=3)
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


def test_registry_reads_every_table_layout(tmp_path, layout):
    name, split, _, _ = layout
    require_data_set(tmp_path, name)
    (source,) = open_split(tmp_path, name, split)
    assert len(source) == 6 and source.captions(0)[0].startswith("a black dog") and source.image_bytes(5)
    assert open_split(tmp_path, "sbu", "val") == []


@pytest.mark.parametrize("prefix", ["conceptual_caption_train_0", "sbu_0", "mine_test", "mine_test_0"])
def test_registry_reads_every_arrow_name(tmp_path, save, prefix):
    save(tmp_path / f"{prefix}.arrow", table())
    name = {"conc": "gcc", "sbu_": "sbu", "mine": "mine"}[prefix[:4]]
    (source,) = open_split(tmp_path, name, "test" if name == "mine" else "train")
    assert len(source) == 5


def test_registry_own_files(tmp_path, save, make_folder):
    path = make_folder("elsewhere", "pairs.tsv", images=3)
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


def test_memory_does_not_grow_over_an_epoch(opened):
    try:
        private_bytes()
    except (OSError, KeyError):
        pytest.skip("needs Linux's /proc")
    rng = np.random.default_rng(0)
    images = pa.array([rng.bytes(20_000) for _ in range(2000)], pa.binary())
    source = opened(table(2000, image=images), 256)

    def epoch() -> int:
        order = rng.permutation(len(source))
        return sum(len(source.image_bytes(i)) + len(source.captions(i)) + len(source.image_id(i)) for i in order)

    epoch()
    before = private_bytes()
    for _ in range(3):
        epoch()
    assert private_bytes() - before < 4_000_000  # the data are 40 MB


def test_one_path_in_place_of_a_list():
    with pytest.raises(DataError, match=r"come in a list: \['a.arrow'\], not 'a.arrow'"):
        ArrowSource("x", "train", "a.arrow")


def test_more_files_than_may_be_open(tmp_path, save):
    """It is said; the files are not called broken."""
    paths = [save(tmp_path / f"{n}.arrow", table(1)) for n in range(20)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 5, before[1]))
    try:
        with pytest.raises(DataError, match=r"arrow: more Arrow files than may be open; raise the limit \(ulimit -n\)"):
            ArrowSource("x", "train", paths)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
