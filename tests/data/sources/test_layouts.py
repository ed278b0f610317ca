"""Arrow files as other programs write them: whatever the layout of a column, the same values."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from lexlip_data.convert.check import check_folder
from lexlip_data.errors import BrokenSample, DataError
from lexlip_data.sources.arrow import ArrowSource

IMAGES = [b"x" * 30, b"y" * 30, None]
CAPTIONS = [["a dog in the long grass", "b"], ["c", "d"], None]
IDS = ["first", "second one, a long name", None]
PLAIN = [row and row[0] for row in CAPTIONS]


def lists_of_dictionaries(views):
    words = pa.array([word for row in CAPTIONS if row for word in row]).dictionary_encode()
    if views:
        return pa.ListViewArray.from_arrays(pa.array([0, 2, 4], pa.int32()), pa.array([2, 2, 0], pa.int32()), words)
    return pa.ListArray.from_arrays(pa.array([0, 2, 4, 4], pa.int32()), words)


@pytest.fixture
def read(tmp_path):
    """read(columns, stream) -> (images, captions, ids) of a file; None for a cell that is told to be broken."""

    def of(columns, stream=False):
        columns = {"image": pa.array(IMAGES, pa.binary()), "caption": CAPTIONS, "image_id": IDS, **columns}
        batch = pa.record_batch(columns)
        path = tmp_path / "w.arrow"
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), batch.schema) as writer:
            writer.write_batch(batch)
            writer.write_batch(batch)
        source = ArrowSource("x", "train", [path])
        assert len(source) == 6 and len(source.left_out) == 2  # the rows without captions are listed

        def value(read, i):
            try:
                return read(i)
            except BrokenSample as error:
                assert "null" in str(error)
                return None

        assert [split.problems for split in check_folder(tmp_path)] == [[]]
        parts = (lambda i: bytes(source.image_bytes(i)), source.captions, source.image_id)
        return tuple([value(part, i) for i in (3, 4, 5)] for part in parts)

    return of


EXPECTED = (IMAGES, [row or [] for row in CAPTIONS], IDS)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary_view()), pa.array(IMAGES, pa.large_binary()), pa.array(IMAGES, pa.binary(30)),
        pa.array(IMAGES, pa.binary()).dictionary_encode(), pa.array(IMAGES, pa.binary(30)).dictionary_encode(),
        pa.array([{"bytes": data, "path": None} for data in IMAGES]),
        pa.array([{"bytes": x} for x in IMAGES[:2]] + [None]),
        pa.array([{"bytes": x, "path": "p"} for x in IMAGES[:2]] + [None],
                 pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()})),
    ],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_layouts_of_images(read, column):
    assert read({"image": column}) == EXPECTED


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array(CAPTIONS, lists(inner)) for lists in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
          for inner in (pa.string(), pa.string_view())),
        pa.array(CAPTIONS, pa.list_(pa.large_string(), 2)), lists_of_dictionaries(True),
    ],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_layouts_of_captions(read, column):
    assert read({"caption": column}) == EXPECTED


@pytest.mark.parametrize(
    "column", [pa.array(PLAIN, pa.string_view()), pa.array(PLAIN).dictionary_encode()], ids=["view", "dictionary"]
)
def test_layouts_of_plain_captions(tmp_path, column):
    batch = pa.record_batch({"image": pa.array(IMAGES, pa.binary()), "caption": column, "image_id": IDS})
    with pa.ipc.new_file(str(tmp_path / "w.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    source = ArrowSource("x", "train", [tmp_path / "w.arrow"])
    assert [source.captions(i) for i in range(3)] == [[PLAIN[0]], [PLAIN[1]], []]


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array(IDS, pa.string_view()), IDS), (pa.array(IDS, pa.large_string()).dictionary_encode(), IDS),
        (pa.array([7, 8, None], pa.uint8()), ["7", "8", None]),
        (pa.array([7, 8, None]).dictionary_encode(), ["7", "8", None]),
    ],
    ids=["view", "dictionary", "numbers", "dictionary of numbers"],
)  # fmt: skip
def test_layouts_of_ids(read, column, ids):
    assert read({"image_id": column}) == (*EXPECTED[:2], ids)


def test_a_stream_is_read_as_a_file(read):
    struct = pa.array([{"bytes": data, "path": None} for data in IMAGES])
    assert read({"image": struct}, stream=True) == EXPECTED


def test_an_image_that_is_only_a_path_is_told(tmp_path):
    batch = pa.record_batch({"image": pa.array([{"bytes": None, "path": "far/a.jpg"}],
                                               pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                             "caption": [["a"]], "image_id": ["1"]})  # fmt: skip
    with pa.ipc.new_file(str(tmp_path / "w.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(BrokenSample, match="holds no bytes, only the path 'far/a.jpg'"):
        ArrowSource("x", "train", [tmp_path / "w.arrow"]).image_bytes(0)


def test_a_stream_that_is_cut_short(tmp_path):
    batch = pa.record_batch({"image": pa.array([b"x" * 500]), "caption": [["a"]], "image_id": ["1"]})
    path = tmp_path / "w.arrow"
    with pa.ipc.new_stream(str(path), batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="w.arrow: record batch 1 cannot be read .*copy"):
        ArrowSource("x", "train", [path])


def test_files_of_other_kinds_are_named(tmp_path):
    path = tmp_path / "w.arrow"
    pa.parquet.write_table(pa.table({"image": [b"x"]}), path)
    with pytest.raises(DataError, match="w.arrow: a Parquet file, not an Arrow IPC file; rewrite it: .*read_table"):
        ArrowSource("x", "train", [path])
    path.write_bytes(b"FEA1" + bytes(50) + b"FEA1")
    with pytest.raises(DataError, match="w.arrow: a file of Feather version 1, not an Arrow IPC file; rewrite it"):
        ArrowSource("x", "train", [path])
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="w.arrow: a Git LFS pointer file, not an Arrow IPC file"):
        ArrowSource("x", "train", [path])


@pytest.mark.parametrize("damage", ["index", "view", "list view"])
def test_what_points_outside_is_refused(tmp_path, damage):
    """Indices of a dictionary and places of views, as offsets are."""
    ids = pa.array(["one", "two", "one"] * 5).dictionary_encode()
    captions = pa.array([["a"], ["b"], ["c"]] * 5, pa.list_view(pa.string()))
    images = pa.array([b"x" * 20, b"y" * 21, b"z" * 22] * 5, pa.binary_view())
    content = {
        "index": ids.indices.buffers()[1].to_pybytes()[: 4 * len(ids)],
        "view": images.buffers()[1].to_pybytes()[:240],
        "list view": captions.buffers()[1].to_pybytes()[: 4 * len(captions)],
    }[damage]
    batch = pa.record_batch({"image": images, "caption": captions, "image_id": ids})
    path = tmp_path / "w.arrow"
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    data = path.read_bytes()
    assert content in data
    hostile = content[:12] + (1 << 30).to_bytes(4, "little") + content[16:]
    path.write_bytes(data.replace(content, hostile))
    with pytest.raises(DataError, match="w.arrow: record batch 0 cannot be read"):
        ArrowSource("x", "train", [path])
