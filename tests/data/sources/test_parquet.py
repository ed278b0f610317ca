"""Parquet files as a source: kinds of columns, ids, paths, and what is wrong with them."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from converter import main

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.sources.parquet import read_cell, read_parquet
from lexlip_data.sources.skipped import Rules
from lexlip_data.sources.table import TsvSource

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def pairs(source):
    return {
        (source.image_id(i), text, bytes(source.image_bytes(i)))
        for i in range(len(source))
        for text in source.captions(i)
    }


@pytest.fixture
def tables(tmp_path, jpeg):
    """One data set as a table and as two Parquet files of row groups of 3, in the layout of Hugging Face."""
    texts = [[f"photo {k}", f"again {k}"] for k in range(14)]
    rows = ["title\tfilepath\timage_id"]
    for k in range(14):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(k))
        rows += [f"{text}\t{k}.jpg\t{k}" for text in texts[k]]
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    images = [{"bytes": jpeg(k), "path": f"{k}.jpg"} for k in range(14)]
    for part, rows_of in (("p-0.parquet", slice(0, 8)), ("p-1.parquet", slice(8, 14))):
        write(tmp_path / part, {
            "image": pa.array(images[rows_of], IMAGE), "caption": texts[rows_of],
            "image_id": range(*rows_of.indices(14)),
            "sentences": [[{"raw": text, "sentid": 1} for text in of] for of in texts[rows_of]],
        }, row_group_size=3)  # fmt: skip
    return tmp_path


def test_parquet_gives_the_pairs_of_the_table(tables):
    wanted = pairs(TsvSource("d", "s", tables / "t.tsv"))
    table = read_parquet(tables / "p-*.parquet", "d", "s")
    assert pairs(table) == wanted and len(wanted) == 28
    assert pairs(read_parquet(tables / "p-*.parquet", "d", "s", caption="sentences.raw")) == wanted
    other = pickle.loads(pickle.dumps(table))
    assert [other.image_bytes(i) for i in (13, 0, 5, 4)] == [table.image_bytes(i) for i in (13, 0, 5, 4)]


def test_conversion_resumes_and_shards(tables):
    common = ["hf", "--parquet", str(tables / "p-{0,1}.parquet"), "--name", "m", "--split", "val", "--workers", "0"]
    assert main([*common, "--quiet", "--shards", "2", "--out", str(tables / "whole")]) == 0
    for part in ("1/2", "0/2", "1/2"):
        assert main([*common, "--quiet", "--shard", part, "--out", str(tables / "parts")]) == 0
    for name in ("m_val_0.arrow", "m_val_1.arrow"):
        assert (tables / "whole" / name).read_bytes() == (tables / "parts" / name).read_bytes()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), IMAGE, pa.dictionary(pa.int32(), pa.binary())])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": False}, {"version": "1.0"}])
def test_images_in_every_kind_of_column(tmp_path, jpeg, kind, options):
    cells = [jpeg(k % 2) for k in range(5)]
    values = [{"bytes": cell, "path": None} for cell in cells] if kind == IMAGE else cells
    column = pa.array(values, kind) if not pa.types.is_dictionary(kind) else pa.array(cells).dictionary_encode()
    path = write(tmp_path / "x.parquet", {"image": column, "caption": ["text"] * 5}, **options)
    table = read_parquet(path, "d", "s")
    assert [table.image_bytes(i) for i in range(5)] == cells
    assert [table.image_id(i) for i in range(5)] == [f"x/{i}" for i in range(5)]


def test_paths_in_place_of_bytes_start_from_the_images_and_do_not_leave_them(tmp_path, jpeg):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    paths = ["a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "none.jpg"]
    texts = {"caption": ["text"] * 4}
    one = write(
        tmp_path / "one.parquet", {"image": pa.array([{"bytes": None, "path": p} for p in paths], IMAGE), **texts}
    )
    two = write(tmp_path / "two.parquet", {"image": paths, **texts})
    for path in (one, two):
        table = read_parquet(path, "d", "s", images=tmp_path / "photos")
        assert table.image_bytes(0) == jpeg(1)
        for row, says in ((1, "leads out"), (2, "leads out"), (3, "No such file")):
            with pytest.raises(DataError, match=says):
                table.image_bytes(row)
    allowed = read_parquet(one, "d", "s", Rules(picture_roots=(str(tmp_path),)), images=tmp_path / "photos")
    assert allowed.image_bytes(1) == jpeg(2)


def test_a_path_that_is_no_text_is_a_broken_image(tmp_path):
    """One bad cell is left out like any broken image; it does not end the run."""
    bad = pa.array([b"\xff.jpg"]).view(pa.string())
    images = {
        "text": bad, "struct": pa.StructArray.from_arrays([pa.array([None], pa.binary()), bad], ["bytes", "path"]),
        "number": pa.array([{"bytes": None, "path": 3}]),
    }  # fmt: skip
    images["number"] = images["number"].cast(pa.struct({"bytes": pa.binary(), "path": pa.int64()}))
    for name, column in images.items():
        table = read_parquet(write(tmp_path / f"{name}.parquet", {"image": column, "caption": ["t"]}), "d", "s")
        with pytest.raises(BrokenImage, match="no text but of type int64" if name == "number" else "not UTF-8"):
            table.image_bytes(0)


def test_rows_of_one_id_are_captions_of_the_first_ones_image(tmp_path, jpeg):
    columns = {"image": [jpeg(1), jpeg(2), jpeg(3)], "text": ["one", "two", "three"], "key": ["a", "b", "a"]}
    table = read_parquet(write(tmp_path / "x.parquet", columns), "d", "s", caption="text", id="key")
    assert [table.captions(i) for i in range(len(table))] == [["one", "three"], ["two"]]
    assert table.image_bytes(0) == jpeg(1)


def test_bad_rows_are_listed(tmp_path, jpeg):
    columns = {
        "image": [jpeg(0)] * 3 + [None, b"no image", jpeg(0)], "caption": ["a", None, " ", "d", "e", "f"],
        "id": ["0", "1", "2", "3", "4", None],
    }  # fmt: skip
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(DataError, match="row 5: the id is null"):
        read_parquet(path, "d", "s")
    table = read_parquet(path, "d", "s", Rules(1.0))
    assert [item.kind for item in table.left_out] == ["empty", "empty", "malformed"] and len(table) == 3
    with pytest.raises(DataError, match="null"):
        table.image_bytes(1)
    wrong = pa.array([b"ok", b"\xff\xfe"]).view(pa.string())
    path = write(tmp_path / "y.parquet", {"image": [jpeg(0)] * 2, "caption": wrong})
    assert [item.reason[-30:] for item in read_parquet(path, "d", "s", Rules(1.0)).left_out][0].endswith("byte)")


def test_columns_that_will_not_do_are_named(tmp_path, jpeg):
    path = write(tmp_path / "x.parquet", {"image": [[jpeg(0)]], "pixels": [3], "caption": [1.5], "key": [0.5]})
    for options, says in (
        ({"image": "photo"}, "no column 'photo'; choose one with --image, the columns are image, pixels"),
        ({}, "lists of images"), ({"image": "pixels"}, "encoded images or their paths"),
        ({"image": "key", "id": "key"}, "encoded images"), ({"caption": "text"}, "--caption"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_parquet(path, "d", "s", **options)
    path = write(tmp_path / "y.parquet", {"image": [jpeg(0)], "caption": [1.5]})
    with pytest.raises(DataError, match="no text as caption"):
        read_parquet(path, "d", "s")


def test_damaged_and_other_files(tmp_path, jpeg):
    path = write(tmp_path / "x.parquet", {"image": [jpeg(k) for k in range(9)], "caption": ["t"] * 9})
    whole = path.read_bytes()
    for content, says in ((whole[:-9], "not a whole"), (b"text", "not a Parquet"), (b"", "not a Parquet")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"x.parquet.*{says}"):
            read_parquet(path, "d", "s")
    broken = bytearray(whole)
    broken[8:600] = bytes(592)
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"x\.parquet"):
        table = read_parquet(path, "d", "s")
        [table.image_bytes(i) for i in range(9)]


def test_a_column_that_repeats_one_large_value_is_read_a_row_at_a_time(tmp_path):
    """8 MiB in a dictionary, 200 times: 1.6 GiB if a row group were read at once."""
    value = pa.array([bytes(8 << 20)])
    indices = pa.array([0] * 200, pa.int32())
    columns = {"image": pa.DictionaryArray.from_arrays(indices, value), "caption": ["text"] * 200}
    path = write(tmp_path / "x.parquet", columns, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    before = pa.default_memory_pool().max_memory()
    table = read_parquet(path, "d", "s")
    assert len(table.image_bytes(3)) == 8 << 20
    assert pa.default_memory_pool().max_memory() - before < 1 << 29


def test_billions_of_nulls_in_one_row_are_refused(tmp_path, jpeg):
    captions = pa.array([[None] * 3_000_000], pa.list_(pa.string()))
    path = write(tmp_path / "x.parquet", {"image": [jpeg(0)], "caption": captions})
    with pytest.raises(DataError, match="values in a column of 1 rows"):
        read_parquet(path, "d", "s")


def test_a_locator_beyond_the_end(tmp_path, jpeg):
    path = write(tmp_path / "x.parquet", {"image": [jpeg(0)], "caption": ["t"]})
    with pytest.raises(DataError, match="may be cut"):
        read_cell(f"{path}#7", "image", str(tmp_path), ())


def test_files_that_hugging_faces_library_wrote(tmp_path, jpeg):
    library = pytest.importorskip("datasets", reason="pip install datasets")
    if not hasattr(library, "Dataset"):
        pytest.skip("pip install datasets")
    rows = {
        "image": [{"bytes": jpeg(0), "path": "0.jpg"}, {"bytes": jpeg(1), "path": "1.jpg"}],
        "caption": [["one", "two"], ["three"]],
    }
    made = library.Dataset.from_dict({**rows, "image_id": [5, 6]}).cast_column("image", library.Image())
    made.to_parquet(str(tmp_path / "x.parquet"))
    table = read_parquet(tmp_path / "x.parquet", "d", "s")
    assert pairs(table) == {("5", "one", jpeg(0)), ("5", "two", jpeg(0)), ("6", "three", jpeg(1))}
