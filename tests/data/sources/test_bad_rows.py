"""Rows and entries that cannot be used: few are left out and listed, many are refused."""

import json
import os

import pytest

from lexlip_data.convert.annotations import read_annotations, read_coco, read_karpathy
from lexlip_data.convert.readers import read_folder
from lexlip_data.errors import DataError
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.sources.skipped import SMALL, Rules
from lexlip_data.sources.table import TsvSource
from lexlip_data.sources.tsv import read_columns

ALL = Rules(max_bad_share=1)


def write(path, changes: dict[int, bytes], rows: int = 200):
    """A table of good rows, some of them replaced; row numbers from 1."""
    lines = [b"title\tfilepath\timage_id", *(b"a dog %d\t%d.jpg\t%d" % (i, i, i) for i in range(1, rows + 1))]
    for number, line in changes.items():
        lines[number] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


CASES = {
    "too many columns": (b"a\tb.jpg\t7\tmore", "malformed", "Row #8: expected 3 columns, got 4"),
    "too few columns": (b"a dog", "malformed", "Row #8: expected 3 columns, got 1"),
    "not UTF-8": (b"caf\xe9\tb.jpg\t7", "malformed", "title is not UTF-8 text"),
    "too few columns, not UTF-8": (b"caf\xe9", "malformed", "expected 3 columns, got 1: caf\ufffd"),
    "no caption": (b" \tb.jpg\t7", "empty", "no caption"),
    "no file": (b"a dog\t\t7", "empty", "no file"),
    "long caption": (b"a dog " * 2_000_000 + b"\tb.jpg\t7", "long", "more than 10,000 characters"),
    "long path": (b"a dog\t" + b"x/" * 3000 + b"\t7", "long", "4,096"),
    "id of another file": (b"a dog\tb.jpg\t3", "repeated", "image_id '3' stands for two files, 3.jpg and b.jpg"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_bad_row_is_left_out_and_named(tmp_path, case):
    line, kind, reason = CASES[case]
    source = TsvSource("x", "train", write(tmp_path / "t.tsv", {7: line}))
    (left_out,) = source.left_out
    assert left_out.kind == kind and left_out.reason.startswith("row 7: ") and reason in left_out.reason
    assert len(left_out.reason) < 400 and len(left_out.path) < 400
    assert [source.image_id(i) for i in range(len(source))] == [str(i) for i in range(1, 201) if i != 7]
    assert source.captions(6) == ["a dog 8"] and ", row 8," in source.where(6)


def test_the_fraction_of_malformed_rows_has_no_floor(tmp_path):
    two = {7: CASES["too few columns"][0], 9: CASES["not UTF-8"][0]}
    assert len(TsvSource("x", "train", write(tmp_path / "t.tsv", two)).left_out) == 2  # 1% of 200
    three = {**two, 11: b"one more"}
    with pytest.raises(
        DataError, match=r"t.tsv, row 7: .*\(3 of 200 rows cannot be used, more than a fraction of 0.01\)"
    ):
        TsvSource("x", "train", write(tmp_path / "t.tsv", three))
    assert len(TsvSource("x", "train", tmp_path / "t.tsv", rules=ALL)) == 197


def n_empty(source) -> int:
    return sum(item.kind == "empty" for item in source.left_out)


def test_ten_empty_captions_are_never_too_many(tmp_path):
    empty = {i: b"\t%d.jpg\t%d" % (i, i) for i in range(1, SMALL + 1)}
    assert n_empty(TsvSource("x", "train", write(tmp_path / "t.tsv", empty))) == SMALL
    message = (
        "t.tsv: 11 of 200 rows cannot be used, more than the 10 .*11 have no caption or no file; the first is row 1$"
    )
    with pytest.raises(DataError, match=message):
        TsvSource("x", "train", write(tmp_path / "t.tsv", {**empty, 50: b"\t50.jpg\t50"}))
    assert n_empty(TsvSource("x", "train", tmp_path / "t.tsv", rules=ALL)) == SMALL + 1


def test_a_stray_quote_costs_nothing_and_an_extra_tab_one_row(tmp_path):
    lines = {7: b'"he said\t7.jpg\t7', 9: b'"two\nlines"\t9.jpg\t9', 11: b"a\tb\tc\td"}
    source = TsvSource("x", "train", write(tmp_path / "t.tsv", {7: lines[7]}))
    assert source.left_out == [] and source.captions(6) == ['"he said']
    source = TsvSource("x", "train", write(tmp_path / "t.tsv", {9: lines[9], 11: lines[11]}))
    assert [item.reason[:7] for item in source.left_out] == ["row 11:"] and source.captions(8) == ["two\nlines"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title\tfilepath\na\tb\n".encode("utf-16"), "t.tsv: UTF-16 text; save it as UTF-8"),
        ("title\tfilepath\na\tb\n".encode("utf-16-le"), "t.tsv: no column.*looks like UTF-16"),
        (b"title\tfilepath\ra\tb\r", "t.tsv: the header cannot be read; lines must end"),
        (b"title\tfilepath " * 200_000, "t.tsv: no line break in the first"),
        (b"title\tfilepath\n" + b"x" * (40 << 20) + b"\tb\n", "t.tsv: malformed table.*a row may have 16 MB"),
        (b"\0" * 1000, "t.tsv: no column title, filepath"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TsvSource("x", "train", tmp_path / "t.tsv", rules=ALL)


def test_a_pipe_in_place_of_a_table_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "t.tsv")
    with pytest.raises(DataError, match="t.tsv: is a pipe"):
        TsvSource("x", "train", tmp_path / "t.tsv")
    with pytest.raises(DataError, match="t.tsv: is a pipe"):
        read_karpathy(tmp_path / "t.tsv", name="x")


def test_a_split_that_is_no_name_writes_no_file(tmp_path):
    lines = ["title\tfilepath\tsplit", *(f"a dog\t{i}.jpg\ttrain" for i in range(200)), "a dog\tx.jpg\t../../etc/train"]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    (table,) = read_folder(tmp_path / "t.tsv", "mine")
    assert table.split == "train" and len(table) == 200
    assert [item.reason for item in table.left_out] == ["row 201: '../../etc/train' is no split"]


# --- JSON ---


def karpathy(change=None, count: int = 30, captions: int = 5) -> dict:
    images = [
        {"filename": f"{i}.jpg", "split": "train", "sentences": [{"raw": f"a dog {k}"} for k in range(captions)]}
        for i in range(count)
    ]
    if change:
        change(images)
    return {"dataset": "mine", "images": images}


@pytest.mark.parametrize(
    ("change", "reason", "captions"),  # that are left of the 150
    [
        (lambda images: images.append({"filename": "x.jpg"}), "images[30] lacks 'split'", 150),
        (lambda images: images.append(None), "images[30] lacks 'filename'", 150),
        (lambda images: images[3].update(split="../out"), "images[3]: no split '../out'", 145),
        (lambda images: images[3].update(filename=7), "images[3]: 'filename' is no text", 145),
        (lambda images: images[3].update(sentences="x"), "images[3] lacks 'sentences'", 145),
        (lambda images: images[3]["sentences"].append(7), "images[3].sentences[5] lacks 'raw'", 150),
        (
            lambda images: images[3]["sentences"][2].update(raw="\ud83d"),
            "images[3].sentences[2]: 'raw' is no text",
            149,
        ),
        (lambda images: images[3]["sentences"][2].update(raw="x" * 10_001), "more than 10,000 characters", 149),
        (lambda images: images[3]["sentences"][2].update(raw=""), "no caption", 149),
    ],
)
def test_a_bad_entry_of_karpathys(tmp_path, change, reason, captions):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(karpathy(change)))
    (table,) = read_karpathy(file)
    (left_out,) = table.left_out
    assert reason in left_out.reason
    assert (len(table), table.caption_counts.sum()) == (29 if captions == 145 else 30, captions)


def test_a_bad_entry_of_gccs_and_cocos(tmp_path):
    entries = [[f"{i}.jpg", "a dog"] for i in range(200)]
    (tmp_path / "train_annot.json").write_text(json.dumps([*entries, ["x.jpg"], ["x.jpg", None]]))
    (table,) = read_annotations(tmp_path, "gcc")
    assert [item.reason for item in table.left_out] == [
        "entry 200 is ['x.jpg'], not [path, caption]", "entry 201: 1 is no text",
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(200)] + [{"id": 3, "file_name": "y.jpg"}]
    captions = [{"image_id": i, "caption": "a dog"} for i in range(200)] + [{"image_id": [], "caption": "a"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (table,) = read_coco(tmp_path / "c.json", tmp_path, "coco2017", "train")
    assert [item.reason for item in table.left_out] == [
        "images[200]: the id 3 was 3.jpg before",
        "annotations[200] belongs to image [], which images[] does not list",
    ]
    with pytest.raises(DataError, match=r"c.json, images\[200\]: the id 3 .*2 of 402 rows .* fraction of 0.001"):
        read_coco(tmp_path / "c.json", tmp_path, "coco2017", "train", rules=Rules(0.001))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "d.json: not JSON .*recursion"),
        (json.dumps(karpathy()).encode("utf-16"), "d.json: not UTF-8 text"),
        (b'"x"', "d.json: no list 'images'"),
        (b'{"images": 7}', "d.json: no list 'images'"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, content, message):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_karpathy(tmp_path / "d.json", name="x")


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "d.json").write_bytes(json.dumps(karpathy()).encode("utf-8-sig"))
    assert len(read_karpathy(tmp_path / "d.json")[0]) == 30


# --- what a run makes of it ---


def test_training_lists_the_rows_it_leaves_out_and_evaluation_refuses_them(make_folder, config, tokenizer):
    for split in ("train", "test"):
        table = make_folder("mine", f"mine_{split}.tsv", images=40, per_image=3)
        table.write_text(table.read_text().replace("the cat sleeps 3\t", "\t", 1))
    module = CaptionDataModule(config, tokenizer)
    module.setup("fit")
    assert module.n_pairs == 119
    assert module.left_out() == ["mine/images/mine_train_3.jpg: row 10: no caption or no file"]
    with pytest.raises(DataError, match="mine_test.tsv: 1 rows of mine, test, cannot be used, e.g. .*row 10"):
        CaptionDataModule(config, tokenizer).setup("test")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_bad_share": 1.5}, "max_bad_share 1.5: must be a fraction"),
        ({"max_bad_share": "1%"}, "max_bad_share '1%'"),
        ({"picture_roots": "/data"}, "picture_roots '/data': give a list"),
    ],
)
def test_bad_rules(config, tokenizer, rules, message):
    with pytest.raises(DataError, match=message):
        CaptionDataModule({**config, **rules}, tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", b"PAR1" + bytes(20), "a Parquet file, not a table .*read_parquet"),
        ("t.xlsx", b"PK\x03\x04" + bytes(20), "an Excel file, not a table .*save it as CSV"),
        ("t.csv", b"PK\x03\x04" + bytes(20), "a zip file, not a table .*unpack"),
        ("t.tsv.gz", b"\x1f\x8b\x08" + bytes(20), "a gzip file, not a table .*unpack"),
        ("t.csv", b'[{"title": "a", "filepath": "b.jpg"}]', "a JSON file, not a table .*karpathy"),
        ("t.tsv", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer file.*git lfs pull"),
        ("t.tsv", b"ARROW1\0\0" + bytes(20), "an Arrow file, not a table"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        read_columns(tmp_path / name)
    if b"{" not in content:
        with pytest.raises(DataError, match=f"{name}: an? .* file, not JSON"):
            read_karpathy(tmp_path / name)


def test_text_that_begins_like_another_kind_is_text(tmp_path):
    (tmp_path / "t.csv").write_text("ORC,title,filepath\n1,a,b.jpg\n")
    assert read_columns(tmp_path / "t.csv").columns["title"].to_pylist() == ["a"]
