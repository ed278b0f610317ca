"""Conversion by several machines, refusals that keep what was done, a full disk, and the check of what came out."""

import subprocess
import sys

import pyarrow as pa
import pytest

from lexlip_data.convert import writer
from lexlip_data.errors import DataError
from lexlip_data.sources.arrow import ArrowSource, find_arrow_files
from lexlip_data.sources.registry import open_split, require_data_set
from lexlip_data.sources.skipped import Rules


@pytest.fixture
def run(command, tmp_path):
    """run(words..., status=0): the command on tmp_path/mine, without worker processes; gives the output folder."""

    def convert(*words, status=0, out="out"):
        where = ["--root", tmp_path, "--name", "mine", "--out", tmp_path / out]
        command("tsv", *where, "--workers", 0, "--quiet", *words, status=status)
        return tmp_path / out

    return convert


@pytest.fixture
def check(command, capsys):
    """check(folder, words..., status=0): the lines that the command prints."""

    def lines(folder, *words, status=0):
        capsys.readouterr()
        command("check", "--out", folder, *words, status=status)
        return capsys.readouterr().out.splitlines()

    return lines


def contents(folder, pattern="*.arrow"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def listed(path):
    return [line.split("\t")[0] for line in path.read_text().splitlines()[1:]]


def spoil(table, *numbers):
    """Break some of a table's images."""
    for number in numbers:
        (table.parent / "images" / f"{table.stem}_{number}.jpg").write_bytes(b"broken")


# --- shards ---


@pytest.mark.parametrize("n", [1, 3, 7])
def test_shards_made_alone_equal_those_of_one_run(tmp_path, make_folder, run, check, n):
    spoil(make_folder("mine", "mine_train.tsv", images=20), 4, 13)
    whole = run("--shards", n, out="whole")
    for i in reversed(range(n)):
        run("--shard", f"{i}/{n}", out="parts")
    assert contents(whole) == contents(tmp_path / "parts") and len(contents(whole)) == n
    lists = sorted((tmp_path / "parts").glob("*_skipped.tsv"))
    assert sorted(item for path in lists for item in listed(path)) == ["1004", "1013"]
    (line,) = check(tmp_path / "parts")
    assert line == f"mine_train: {n} file(s) whole, 18 images, 36 pairs; left out: 2 broken"
    (one,), (two,) = (open_split(folder, "mine", "train") for folder in (whole, tmp_path / "parts"))
    assert [one.image_id(i) for i in range(18)] == [two.image_id(i) for i in range(18)]
    # A run of the whole takes the shards over, and makes one list of theirs.
    run("--shards", n, out="parts")
    assert [path.name for path in (tmp_path / "parts").glob("*_skipped.tsv")] == ["mine_train_skipped.tsv"]
    assert (tmp_path / "parts" / "mine_train_skipped.tsv").read_bytes() == (
        whole / "mine_train_skipped.tsv"
    ).read_bytes()


def test_every_split_and_layout_is_sharded(tmp_path, jpeg, command, check):
    (tmp_path / "images_train" / "0").mkdir(parents=True)
    for i in range(5):
        (tmp_path / "images_train" / "0" / f"{i}.jpg").write_bytes(jpeg(i))
    entries = ", ".join(f'["images_train/0/{i}.jpg", "a dog {i}"]' for i in range(5))
    for name in ("train_annot.json", "val_annot.json"):
        (tmp_path / name).write_text(f"[{entries}]")
    for i in range(2):
        where = ["--root", tmp_path, "--out", tmp_path / "out"]
        command("gcc", *where, "--shard", f"{i}/2", "--workers", 0, "--quiet")
    shards = find_arrow_files(tmp_path / "out", "conceptual_caption_val")
    assert [len(ArrowSource("gcc", "val", [path])) for path in shards] == [2, 3]
    assert len(check(tmp_path / "out", "--name", "gcc")) == 2


def test_more_shards_than_images(make_folder, run, check):
    make_folder("mine", "mine_train.tsv", images=2)
    for i in range(5):
        out = run("--shard", f"{i}/5")
    assert check(out) == ["mine_train: 5 file(s) whole, 2 images, 4 pairs"]
    assert len(open_split(out, "mine", "train")[0]) == 2


def test_a_shard_is_resumed_and_overwritten_alone(make_folder, run, capsys):
    table = make_folder("mine", "mine_train.tsv", images=9)
    for i in range(3):
        out = run("--shard", f"{i}/3")
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    run("--shard", "1/3")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    run("--shard", "1/3", "--overwrite")
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert [name for name in stamps if after[name] != stamps[name]] == ["mine_train_1.arrow"]
    run("--shard", "1/4", status=2)  # cut otherwise
    assert "mine_train_0.arrow was made from other data or options" in capsys.readouterr().err
    spoil(table, 0)
    run("--shard", "2/3", status=2)  # of other images, as the sizes of some tell
    assert "mine_train_0.arrow was made from other data or options" in capsys.readouterr().err
    run("--shard", "2/3", "--overwrite")


def test_the_last_shards_missing_is_noticed_by_training(make_folder, run):
    make_folder("mine", "mine_train.tsv", images=9)
    run("--shard", "0/3")
    out = run("--shard", "1/3")
    with pytest.raises(DataError, match=r"mine_train_2.arrow is missing \(2 of 3 shards are there\)"):
        open_split(out, "mine", "train")
    own = {"mine": {"train": ["mine_train_0.arrow"]}}
    assert len(open_split(out, "mine", "train", own)[0]) == 3  # asked for by name


@pytest.mark.parametrize("text", ["3/3", "a/2", "1", "-1/2", "1/0", ""])
def test_bad_shards(run, make_folder, text, capsys):
    make_folder("mine", "mine_train.tsv", images=2)
    with pytest.raises(SystemExit):
        run(f"--shard={text}")
    assert f"argument --shard: {text!r}: give i/n, i from 0 to n - 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--shard", "0/2", "--shard-images", 3)
    assert "--shard-images: not allowed with argument --shard" in capsys.readouterr().err


# --- too much is bad ---


def test_small_sets_are_refused_beyond_a_third(make_folder, run, capsys):
    table = make_folder("mine", "mine_train.tsv", images=6)
    spoil(table, 0, 1)
    run(out="two of six")
    spoil(table, 2)
    out = run(status=2)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "3 of 6 images cannot be used, more than the 2" in error
    assert "mine_train_0.jpg (cannot be decoded" in error and "mine_train_skipped.tsv" in error
    assert listed(out / "mine_train_skipped.tsv") == ["1000", "1001", "1002"]
    with pytest.raises(DataError, match="holds none of its files"):  # nor would training take it up
        require_data_set(out, "mine")


def test_ten_are_never_too_many_and_the_fraction_counts_above(make_folder, run, capsys):
    table = make_folder("mine", "mine_train.tsv", images=40, per_image=1)
    spoil(table, *range(10))
    run(out="ten")
    spoil(table, 10)
    run(out="eleven", status=2)
    assert (
        "11 of 40 images cannot be used, more than the 10 that --max-bad-share 0.01 allows" in capsys.readouterr().err
    )
    run("--max-bad-share", 0.3, out="eleven")
    assert Rules(0.01).allowed(3_000_000) == 30_000


def test_a_refusal_keeps_what_was_done(make_folder, run, tmp_path, monkeypatch):
    table = make_folder("mine", "mine_train.tsv", images=40, per_image=1)
    spoil(table, *range(12, 24))  # the second and third of five shards of 8
    out = run("--shards", 5, status=2)
    assert list(contents(out)) == ["mine_train_0.arrow", "mine_train_1.arrow"]
    assert [path.name for path in out.glob(".*")] == [".mine_train_2.arrow.partial"]
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != ".tsv"}
    run("--shards", 5, status=2)
    run("--shards", 5, "--max-bad-share", 0.5)
    assert not list(out.glob(".*"))
    for path, stamp in stamps.items():
        final = out / path.name.removeprefix(".").removesuffix(".partial")
        assert final.stat().st_mtime_ns == stamp
    assert len(listed(out / "mine_train_skipped.tsv")) == 12
    whole = run("--shards", 5, "--max-bad-share", 0.5, out="whole")
    assert contents(out) == contents(whole)


def test_a_shard_without_an_image_takes_no_other_with_it(make_folder, run, capsys):
    table = make_folder("mine", "mine_train.tsv", images=40, per_image=1)
    spoil(table, *range(20))
    out = run("--shard", "1/2")
    run("--shards", 2, status=2)
    assert "not one of 20 images could be read" in capsys.readouterr().err
    assert list(contents(out)) == ["mine_train_1.arrow"]


def test_reasons_survive_a_run_that_is_cut_off(tmp_path, make_folder, run, monkeypatch):
    table = make_folder("mine", "mine_train.tsv", images=12, per_image=1)
    spoil(table, 0, 5, 10)
    out = run("--shards", 3)
    before = (out / "mine_train_skipped.tsv").read_bytes()
    (out / "mine_train_0.arrow").unlink()
    (out / "mine_train_1.arrow").unlink()
    write = writer._write_shard

    def stop_at_the_second(report, plan, k, *rest):
        if k == 1:
            raise RuntimeError("cut off")
        write(report, plan, k, *rest)

    monkeypatch.setattr(writer, "_write_shard", stop_at_the_second)
    with pytest.raises(RuntimeError, match="cut off"):
        run("--shards", 3)
    monkeypatch.undo()
    assert listed(out / "mine_train_skipped.tsv") == ["1000", "1005", "1010"]
    run("--shards", 3)
    assert (out / "mine_train_skipped.tsv").read_bytes() == before


def test_a_bad_shard_alone_is_refused_and_the_check_judges_all(make_folder, run, check, capsys):
    table = make_folder("mine", "mine_train.tsv", images=80, per_image=1)
    spoil(table, *range(8), *range(20, 28))  # 8 of the first 20, 8 of the second
    run("--shard", "0/4", status=2)
    assert "8 of 20 images cannot be used, more than the 6" in capsys.readouterr().err
    for i in range(4):
        out = run("--shard", f"{i}/4", "--max-bad-share", 0.5)
    (line,) = check(out, status=1)
    assert line == "mine_train: 16 of 80 images were left out, more than the 10 that --max-bad-share 0.01 allows"
    assert check(out, "--max-bad-share", 0.5) == [
        "mine_train: 4 file(s) whole, 64 images, 64 pairs; left out: 16 broken"
    ]


def test_rows_are_listed_once_for_all_shards(make_folder, run, check, capsys):
    table = make_folder("mine", "mine_train.tsv", images=30, per_image=4)
    table.write_text(table.read_text().replace("the cat sleeps 3\t", "\t", 1) + "a dog\n")
    for i in range(2):
        out = run("--shard", f"{i}/2")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("; 0 missing, 0 broken, 1 rows without a caption or a file, 1 malformed rows; listed in "
                               f"{out / 'mine_train_0_skipped.tsv'}")  # fmt: skip
    assert [path.name for path in out.glob("*.tsv")] == ["mine_train_0_skipped.tsv"]
    lines = (out / "mine_train_0_skipped.tsv").read_text().splitlines()
    assert "malformed\trow 121: " in lines[1] and "empty\trow 13: " in lines[2]
    (line,) = check(out)
    assert line.startswith("mine_train: 2 file(s) whole, 30 images, 119 pairs; left out: 1 rows without a caption")


def test_paths_that_lead_out_are_left_out_unless_allowed(make_folder, run, tmp_path, jpeg, capsys):
    table = make_folder("mine", "mine_train.tsv", images=6)
    (tmp_path / "elsewhere").mkdir()
    image = table.parent / "images" / "mine_train_2.jpg"
    image.rename(tmp_path / "elsewhere" / "p.jpg")
    image.symlink_to(tmp_path / "elsewhere" / "p.jpg")
    root = tmp_path / "root"
    root.mkdir()
    table.parent.rename(root / "mine")
    words = ("--root", root)
    out = run(*words)
    assert "0 missing, 0 broken, 1 outside the data root" in capsys.readouterr().out
    assert "outside\tleads out of" in (out / "mine_train_skipped.tsv").read_text()
    allowed = run(*words, "--picture-roots", tmp_path / "elsewhere", out="allowed")
    assert len(open_split(allowed, "mine", "train")[0]) == 6 and not list(allowed.glob("*.tsv"))


# --- a full disk ---

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # a write beyond it fails as on a full disk
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_keeps_finished_shards_and_names_the_file(tmp_path, make_folder, run, jpeg, convert):
    table = make_folder("mine", "mine_train.tsv", images=6, per_image=1)
    (table.parent / "images" / "mine_train_5.jpg").write_bytes(jpeg(5, (2000, 2000)))
    out = tmp_path / "out"
    words = ["tsv", "--root", tmp_path, "--name", "mine", "--out", out, "--shards", 3, "--workers", 0, "--quiet"]
    command = [sys.executable, "-c", LIMITED, "100000", convert.__file__, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {out}/.mine_train_2.arrow.partial: cannot be written (File too large)")
    assert "finished shards are kept" in line
    assert sorted(path.name for path in out.iterdir()) == ["mine_train_0.arrow", "mine_train_1.arrow"]
    run("--shards", 3)
    assert len(open_split(out, "mine", "train")[0]) == 6


# --- check ---


@pytest.fixture
def sharded(make_folder, run):
    spoil(make_folder("mine", "mine_train.tsv", images=12), 2)
    make_folder("mine", "mine_val.tsv", images=3)
    return run("--shards", 3)


def test_check_reads_everything(sharded, check, tmp_path):
    assert check(sharded) == check(sharded, "--name", "mine") == [
        "mine_train: 3 file(s) whole, 11 images, 22 pairs; left out: 1 broken",
        "mine_val: 3 file(s) whole, 3 images, 6 pairs",
    ]  # fmt: skip
    assert check(sharded, "--name", "other", status=2) == []
    assert check(tmp_path / "nowhere", status=2) == []


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_check_notices_a_flipped_byte_that_training_would_not(sharded, check, at):
    path = sharded / "mine_train_1.arrow"
    data = bytearray(path.read_bytes())
    image = bytes(ArrowSource("mine", "train", [path]).image_bytes(0))
    start = data.index(image) + int(at * len(image))
    data[start] ^= 0x55
    path.write_bytes(bytes(data))
    assert len(open_split(sharded, "mine", "train")[0]) == 11
    (line, _) = check(sharded, status=1)
    assert line.startswith(f"{path}: record batch 0 is not as it was written")


def test_check_notices_a_changed_caption(sharded, check):
    path = sharded / "mine_train_1.arrow"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"cat", b"bat", 1))
    assert path.read_bytes() != data
    assert "is not as it was written" in check(sharded, status=1)[0]


def test_check_names_what_is_missing_cut_mixed_or_renamed(sharded, check, run, make_folder, tmp_path):
    (sharded / "mine_train_skipped.tsv").rename(tmp_path / "list")
    assert "1 images were left out, but 0 are listed" in check(sharded, status=1)[0]
    (tmp_path / "list").rename(sharded / "mine_train_skipped.tsv")

    last = sharded / "mine_train_2.arrow"
    data = last.read_bytes()
    last.unlink()
    assert check(sharded, status=1)[0] == f"{last}: missing"
    (sharded / ".mine_train_2.arrow.partial").touch()
    assert check(sharded, status=1)[0] == f"{last}: missing (begun: killed, refused, or still at work)"

    last.write_bytes(data[:-10])
    assert f"{last}: not a complete Arrow IPC file" in check(sharded, status=1)[0]

    (sharded / "mine_train_1.arrow").rename(last)
    assert check(sharded, status=1)[:2] == [
        f"{last}: holds shard 1 of 3 of mine_train; was it renamed?",
        f"{sharded}/mine_train_1.arrow: missing",
    ]
    make_folder("mine", "mine_train.tsv", images=13)
    other = run("--shard", "1/3", out="other")
    (other / "mine_train_1.arrow").rename(sharded / "mine_train_1.arrow")
    last.write_bytes(data)
    assert "made from other data or options than the rest: mine_train_1.arrow" in check(sharded, status=1)[0]
    (sharded / "mine_train.arrow").write_bytes(data)
    assert "both mine_train.arrow and numbered shards are there" in check(sharded, status=1)[0]


def test_check_reads_files_of_other_programs(tmp_path, check, save):
    table = pa.table({"image": [b"x"] * 3, "caption": [["a", "b"], [], ["c"]], "image_id": ["1", "2", "3"]})
    for k in (0, 1):
        save(tmp_path / f"sbu_{k}.arrow", table)
    assert check(tmp_path, "--name", "sbu") == ["sbu: 2 file(s) whole, 6 images, 6 pairs"]
    (tmp_path / "sbu_0.arrow").rename(tmp_path / "sbu_2.arrow")
    assert check(tmp_path, status=1) == [f"{tmp_path}/sbu_0.arrow: missing"]


def test_a_list_that_is_damaged_is_named(sharded, check, run):
    (sharded / "mine_train_skipped.tsv").write_bytes(b"\xff\xfe")
    assert "mine_train_skipped.tsv: not a list of skipped images" in check(sharded, status=1)[0]
