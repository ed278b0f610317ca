"""The converter: every layout, and shards that are whole, resumable and the same for any number of workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lexlip_data.convert import writer
from lexlip_data.convert.annotations import read_karpathy
from lexlip_data.convert.readers import read_folder, read_tsv
from lexlip_data.convert.shard_plan import ShardPlan
from lexlip_data.convert.writer import ImageReader, write_split
from lexlip_data.errors import DataError
from lexlip_data.sources.arrow import ArrowSource, find_arrow_files
from lexlip_data.sources.registry import open_split


@pytest.fixture
def run(command):
    """run(words..., status=0): the command without worker processes."""
    return lambda *words, status=0: command(*words, "--workers", 0, "--quiet", status=status)


def content(folder, prefix):
    source = ArrowSource("x", "x", find_arrow_files(folder, prefix))
    return [(source.image_id(i), source.captions(i), bytes(source.image_bytes(i))) for i in range(len(source))]


def pairs(source):
    return {(source.path(i).name, caption) for i in range(len(source)) for caption in source.captions(i)}


# --- layouts ---


def test_tsv(tmp_path, layout, run):
    name, split, table, output = layout
    run("tsv", "--root", tmp_path, "--name", name, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [output]
    (before,), (after,) = open_split(tmp_path, name, split), open_split(tmp_path / "out", name, split)
    assert after.caption_counts.tolist() == [2] * 6
    for i in range(6):
        assert after.image_id(i) == before.image_id(i) and after.captions(i) == before.captions(i)
        assert bytes(after.image_bytes(i)) == (table.parent / f"images/{table.stem.split('.')[0]}_{i}.jpg").read_bytes()
    reader = pa.ipc.open_file(str(tmp_path / "out" / output))
    assert reader.schema.names == ["image", "caption", "image_id", "split"]
    assert set(reader.read_all()["split"].to_pylist()) == {split}


def test_tsv_errors(tmp_path, make_folder, capsys, run):
    run("tsv", "--root", tmp_path, "--name", "coco", "--out", tmp_path / "out", status=2)
    assert "COCO/coco_train.tsv" in capsys.readouterr().err
    make_folder("COCO", "coco_train.tsv")
    run("tsv", "--root", tmp_path, "--name", "coco", "--split", "val", "--out", tmp_path / "out", status=2)
    assert "coco_val.tsv" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coco_caption_karpathy_restval.arrow").touch()
    run("tsv", "--root", tmp_path, "--name", "coco", "--out", tmp_path / "out", status=2)
    assert "twice" in capsys.readouterr().err


def test_folder(tmp_path, make_folder, jpeg, run, capsys):
    table = make_folder("any", "t.tsv")
    run("folder", "--table", table, "--name", "mine", "--out", tmp_path / "out", status=2)
    assert "t.tsv: no column split, so say which split this is with --split" in capsys.readouterr().err
    run("folder", "--table", table, "--name", "mine", "--split", "train", "--out", tmp_path / "out")
    assert len(content(tmp_path / "out", "mine_train")) == 6
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = [
        "title,filepath,split,long_caption",
        *(f'"a, b",{i}.jpg,{"train" if i < 3 else "dev"},long {i}' for i in range(4)),
    ]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "c.csv").write_text("\n".join(rows))
    command = ("folder", "--table", tmp_path / "lists" / "c.csv", "--images", tmp_path, "--name", "own")
    run(*command, "--out", tmp_path / "out")
    assert [len(content(tmp_path / "out", f"own_{split}")) for split in ("train", "dev")] == [3, 1]
    (source,) = open_split(tmp_path / "out", "own", "train")
    assert (source.captions(2), source.long_captions(2), source.image_id(2)) == (["a, b"], ["long 2"], "2.jpg")
    run(*command, "--split", "test", "--out", tmp_path / "out", status=2)
    assert "c.csv: no row of split 'test'; its splits are train, dev" in capsys.readouterr().err


@pytest.mark.parametrize("in_json", [True, False], ids=["filepath in the JSON", "folder beside it"])
def test_karpathy(tmp_path, jpeg, in_json, run):
    images = []
    for i, split in enumerate(["train", "restval", "val", "test", "train"]):
        folder = "train2014" if in_json else "flickr30k-images"
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{i}.jpg").write_bytes(jpeg(i))
        entry = {
            "filename": f"{i}.jpg",
            "split": split,
            "sentences": [{"raw": f"caption {k} of {i}"} for k in range(5)],
        }
        images.append({**entry, "filepath": folder} if in_json else entry)
    (tmp_path / "karpathy").mkdir()
    dataset, name = ("coco", "coco") if in_json else ("flickr30k", "f30k")
    file = tmp_path / "karpathy" / f"dataset_{dataset}.json"
    file.write_text(json.dumps({"dataset": dataset, "images": images}))
    run("karpathy", "--root", tmp_path, "--name", name, "--out", tmp_path / "out")
    run("karpathy", "--json", file, "--out", tmp_path / "out2")
    for out in (tmp_path / "out", tmp_path / "out2"):
        found = {
            split: content(out, f"{name}_caption_karpathy_{split}") for split in ("train", "restval", "val", "test")
        }
        assert {split: [row[0] for row in rows] for split, rows in found.items()} == {
            "train": ["0.jpg", "4.jpg"], "restval": ["1.jpg"], "val": ["2.jpg"], "test": ["3.jpg"],
        }  # fmt: skip
        assert found["train"][1][1:] == ([f"caption {k} of 4" for k in range(5)], jpeg(4))
    if in_json:  # coco trains on restval too
        assert len(open_split(tmp_path / "out", "coco", "train")[0]) == 3


@pytest.mark.parametrize("paths", ["relative", "elsewhere"])
def test_gcc_and_sbu_annotations(tmp_path, jpeg, paths, run):
    for split in ("train", "val"):
        folder = tmp_path / f"images_{split}" / "0000"
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"000{i}.jpg").write_bytes(jpeg(i))
        base = f"images_{split}/0000" if paths == "relative" else "/somewhere/else"
        entries = [[f"{base}/000{i}.jpg", f"caption {i}"] for i in range(3)]
        (tmp_path / f"{split}_annot.json").write_text(json.dumps(entries))
    (tmp_path / "annot.json").write_text((tmp_path / "train_annot.json").read_text())
    run("gcc", "--root", tmp_path, "--out", tmp_path / "out")
    run("sbu", "--root", tmp_path, "--out", tmp_path / "out")
    for prefix in ("conceptual_caption_train", "conceptual_caption_val", "sbu"):
        assert (tmp_path / "out" / f"{prefix}_0.arrow").is_file()
        assert content(tmp_path / "out", prefix) == [(f"000{i}.jpg", [f"caption {i}"], jpeg(i)) for i in range(3)]


def test_coco_captions(tmp_path, jpeg, run):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "7.jpg").write_bytes(jpeg(0))
    annotations = [{"image_id": 7, "id": k, "caption": f"caption {k}"} for k in range(5)]
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps({"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": annotations}))
    run("coco-captions", "--root", tmp_path, "--out", tmp_path / "a")
    explicit = ("--annotations", file, "--images", tmp_path / "val2017", "--split", "val", "--name", "coco2017")
    run("coco-captions", *explicit, "--out", tmp_path / "b")
    for out in ("a", "b"):
        assert content(tmp_path / out, "coco2017_val") == [("7.jpg", [f"caption {k}" for k in range(5)], jpeg(0))]


@pytest.mark.parametrize(
    ("words", "file", "text", "message"),
    [
        ("karpathy --json {} --name x", "d.json", '{"images": [{"filename": "a"}]}', "images[0] lacks 'split'"),
        ("karpathy --json {} --name x", "d.json", "[]", "no list 'images'"),
        ("karpathy --json {} --name x", "d.json", '{"images": [', "not JSON"),
        ("gcc --root {}/..", "train_annot.json", '[["a.jpg", "x"], ["b.jpg"]]', "entry 1"),
        ("coco-captions --annotations {} --images . --split val", "c.json",
         '{"images": [], "annotations": [{"image_id": 3, "caption": ""}]}', "image 3"),
    ],
)  # fmt: skip
def test_malformed_json(tmp_path, capsys, words, file, text, message, run):
    (tmp_path / file).write_text(text)
    target = str(tmp_path / file) if "/.." not in words else str(tmp_path / "x")
    (tmp_path / "x").mkdir()
    run(*words.format(target).split(), "--out", tmp_path / "out", status=2)
    error = capsys.readouterr().err
    assert message in error and file in error


# --- the writer ---


def TsvTable(path):
    return read_tsv(path.parent.parent, path.parent.name, ["train"])[0]


def write(table, out, image_reader, overwrite=False, **cut):
    return write_split(ShardPlan(table, out, "p", **cut), image_reader, overwrite=overwrite, progress=False)


def test_parallel_equals_serial(tmp_path, make_folder):
    table = TsvTable(make_folder("mine", "mine_train.tsv", images=21))
    for workers in (0, 2):
        with ImageReader(workers) as reader:
            report = write(table, tmp_path / str(workers), reader, shard_images=8)
        assert (report.images, report.pairs, len(report.shards), report.skipped) == (21, 42, 3, [])
    files = [sorted((tmp_path / workers).iterdir()) for workers in ("0", "2")]
    assert [path.name for path in files[0]] == ["p_0.arrow", "p_1.arrow", "p_2.arrow"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_resume_keeps_finished_shards(tmp_path, make_folder, monkeypatch):
    table, out = TsvTable(make_folder("mine", "mine_train.tsv", images=9)), tmp_path / "out"
    read = []

    def stop_at_fifth(path):
        read.append(path)
        if len(read) == 5:
            raise KeyboardInterrupt
        return Path(path).read_bytes()

    with pytest.raises(KeyboardInterrupt), ImageReader(0, stop_at_fifth) as reader:
        write(table, out, reader, shard_images=3)
    assert [path.name for path in out.iterdir()] == ["p_0.arrow"]  # nothing half-written, no leftovers
    stamp = (out / "p_0.arrow").stat().st_mtime_ns
    with ImageReader(0, stop_at_fifth) as reader:
        report = write(table, out, reader, shard_images=3)
    assert (report.reused, report.images, len(read)) == (1, 9, 5 + 6)
    assert (out / "p_0.arrow").stat().st_mtime_ns == stamp
    with ImageReader() as reader:
        write(table, tmp_path / "straight", reader, shard_images=3)
    for k in range(3):
        assert (out / f"p_{k}.arrow").read_bytes() == (tmp_path / "straight" / f"p_{k}.arrow").read_bytes()


def test_a_killed_conversion_leaves_no_shard(tmp_path, make_folder, python):
    make_folder("mine", "mine_train.tsv", images=4)
    code = (
        "import os, sys; from lexlip_data.convert.readers import read_tsv; from lexlip_data.convert.writer import *\n"
        "from lexlip_data.convert.shard_plan import ShardPlan\n"
        "def read(path):\n"
        "    if '_3.jpg' in path: os._exit(9)\n"
        "    return open(path, 'rb').read()\n"
        f"table, = read_tsv({str(tmp_path)!r}, 'mine')\n"
        "with ImageReader(0, read) as reader: write_split(ShardPlan(table, sys.argv[1], 'p'), reader, progress=False)\n"
    )
    out = tmp_path / "out"
    assert python(code, out).returncode == 9
    assert find_arrow_files(out, "p") == [] and [path.name for path in out.iterdir()] == [".p.arrow.partial"]
    with ImageReader() as reader:
        write(read_tsv(tmp_path, "mine")[0], out, reader)
    assert [path.name for path in out.iterdir()] == ["p.arrow"]


def test_stale_shards_are_refused_or_replaced(tmp_path, make_folder, jpeg, save):
    path, out = make_folder("mine", "mine_train.tsv", images=6), tmp_path / "out"

    def again(**options):
        with ImageReader() as reader:
            return write(TsvTable(path), out, reader, **options)

    again(shard_images=2)
    assert again(shard_images=2).reused == 3
    for options in ({"shard_images": 3}, {}, {"shard_images": 2, "options": {"size": 96}}):
        with pytest.raises(DataError, match="other data or options.*--overwrite"):
            again(**options)
    (tmp_path / "elsewhere").mkdir()
    path = path.parent.rename(tmp_path / "elsewhere" / "mine") / path.name
    assert again(shard_images=2).reused == 3
    (path.parent / "images" / "mine_train_0.jpg").write_bytes(jpeg(99, (64, 64)))
    with pytest.raises(DataError, match="p_0.arrow was made from other data"):
        again(shard_images=2)
    path.write_text(path.read_text().replace("black", "brown"))
    with pytest.raises(DataError, match="p_0.arrow was made from other data"):
        again(shard_images=2)
    assert again(overwrite=True).reused == 0
    assert [file.name for file in out.iterdir()] == ["p.arrow"]
    save(out / "p.arrow", pa.table({"image": [b"x"], "caption": [["a"]], "image_id": ["1"]}))
    with pytest.raises(DataError, match="by another program"):
        again()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_listed(tmp_path, make_folder, capsys, workers, command):
    table, out = make_folder("mine", "mine_train.tsv", images=6), tmp_path / "out"
    images = table.parent / "images"
    (images / "mine_train_1.jpg").unlink()
    (images / "mine_train_3.jpg").write_bytes((images / "mine_train_3.jpg").read_bytes()[:400])
    words = ["tsv", "--root", tmp_path, "--name", "mine", "--out", out, "--shard-images", 2, "--quiet"]
    for kept in (0, 3):
        command(*words, "--workers", workers)
        printed = capsys.readouterr().out
        assert "4 images, 8 pairs, 3 file(s)" in printed and "1 missing, 1 broken" in printed
        assert ("3 kept from before" in printed) == bool(kept)
        listed = [line.split("\t") for line in (out / "mine_train_skipped.tsv").read_text().splitlines()]
        assert [row[0] for row in listed] == ["image_id", "1001", "1003"]
        assert listed[1][2] == "missing" and listed[2][2] == "broken" and "mine_train_1.jpg" in listed[1][1]
    assert [row[0] for row in content(out, "mine_train")] == ["1000", "1002", "1004", "1005"]


def test_everything_missing(tmp_path, make_folder, capsys, run):
    table = make_folder("mine", "mine_train.tsv", images=3)
    for image in (table.parent / "images").iterdir():
        image.unlink()
    run("tsv", "--root", tmp_path, "--name", "mine", "--out", tmp_path / "out", status=2)
    error = capsys.readouterr().err
    assert "not one of 3 images" in error and "mine_train_0.jpg" in error
    assert find_arrow_files(tmp_path / "out", "mine_train") == []


def test_max_images_and_record_batches(tmp_path, make_folder, monkeypatch, run):
    make_folder("mine", "mine_train.tsv", images=9)
    monkeypatch.setattr(writer, "BATCH_ROWS", 2)
    run("tsv", "--root", tmp_path, "--name", "mine", "--out", tmp_path / "out", "--max-images", 5)
    reader = pa.ipc.open_file(str(tmp_path / "out" / "mine_train.arrow"))
    assert [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)] == [2, 2, 1]
    assert [row[0] for row in content(tmp_path / "out", "mine_train")] == [f"100{i}" for i in range(5)]


def test_the_command_runs_by_path_without_installation(tmp_path, make_folder, convert):
    make_folder("mine", "mine_train.tsv", images=3)
    words = [sys.executable, convert.__file__, "tsv", "--root", tmp_path, "--name", "mine", "--out", tmp_path / "out"]
    command = [str(word) for word in words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*command, "--workers", "1"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine_train: 3 images, 6 pairs" in done.stdout
    bad = subprocess.run([*command, "--name", "a/b"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 2 and "becomes a file name" in bad.stderr


# --- real data ---


def test_flickr8k_tsv_and_json_hold_the_same_pairs(shared):
    folder = shared("data", "flickr8k")
    from_json = {table.split: table for table in read_karpathy(folder / "dataset_flickr8k.json")}
    for table in read_tsv(folder.parent, "flickr8k"):
        assert pairs(table) == pairs(from_json[table.split])
        assert table.path(0).is_file() and from_json[table.split].path(0).is_file()
    assert set(from_json) == {"train", "val"} and len(from_json["train"]) == 6000


def test_coco_mini(shared, tmp_path, run):
    root = shared("data", "coco_mini")
    run("coco-captions", "--root", root, "--out", tmp_path)
    rows = content(tmp_path, "coco2017_train") + content(tmp_path, "coco2017_val")
    assert len(rows) == 101 and sum(len(row[1]) for row in rows) >= 505
    file = next(root.glob(f"*2017/{rows[0][0]}"))
    assert rows[0][2] == file.read_bytes()


def test_folder_reads_captions_of_a_table_with_splits(shared):
    table = shared("data", "flickr8k", "flickr8k_val.tsv")
    (val,) = read_folder(table, "f8", "val")
    val.keep_first(10)
    assert len(val) == 10 and val.path(9).is_file() and val.caption_counts.tolist() == [5] * 10
