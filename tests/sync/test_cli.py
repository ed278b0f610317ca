"""lexlip sync with the model that comes along: a few drawings, one file that is none, another model, looking again."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lexlip.cli import main
from lexlip.index import Index, SparseRows, build
from lexlip.index.store import read_manifest
from lexlip.sync.cli import report
from lexlip.sync.run import Synced


@pytest.fixture
def drawings(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 200 - 60 * number, 30)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "no.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.xyz").write_text("something else")
    return tmp_path / "photos"


def test_a_folder_from_the_command_line(drawings, tmp_path, capsys, make_worded):
    words = ["sync", str(drawings), "--index", str(tmp_path / "i")]
    assert main(words) == 0
    output = capsys.readouterr()
    assert "3 added, 1 cannot be used; 3 in the index" in output.out and "photos/s" in output.out
    assert "no.jpg: cannot be decoded" in output.err and "not read: 1 .xyz" in output.err
    assert read_manifest(tmp_path / "i").model.name == "photos-small"
    vectors = Index.open(tmp_path / "i", "photos-small")
    assert vectors.search(Image.open(drawings / "1.png"), 1)[0].id == "1.png"
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["unchanged"], answer["encoded"], list(answer["broken"])) == (3, 0, ["no.jpg"])
    assert main([*words, "--model", "photos-small"]) == 0
    capsys.readouterr()
    make_worded().save_pretrained(tmp_path / "other one")
    for number in range(2):  # where nothing is new, too
        assert main([*words, "--model", str(tmp_path / "other one")]) == 2
        error = capsys.readouterr().err
        assert "was made by photos-small" in error
        assert f"lexlip sync {drawings} --index {tmp_path / 'i'} --model '{tmp_path / 'other one'}' --rebuild" in error
        Image.new("RGB", (40, 40), (9, 9, 9)).save(drawings / f"new{number}.png")
    assert len(Index.open(tmp_path / "i")) == 3
    for command in (["search", "red"], ["serve", "--port", "0"]):
        assert main([*command, "--index", str(tmp_path / "i"), "--model", str(tmp_path / "other one")]) == 2
        error = capsys.readouterr().err
        assert f"not by {tmp_path / 'other one'} (" in error and error.endswith("--rebuild builds it anew\n")


def test_an_index_of_nobody_knows_which_model_is_not_added_to(drawings, tmp_path, capsys):
    build(tmp_path / "i", [SparseRows.from_bags([{1: 1.0}], ["a"])])
    assert main(["sync", str(drawings), "--index", str(tmp_path / "i")]) == 2
    assert "does not say which model made it; name it with --model" in capsys.readouterr().err


def test_watching_looks_again_and_again(drawings, tmp_path, capsys, monkeypatch):
    looks = []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            (drawings / "1.png").rename(drawings / "moved.png")
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", wait)
    assert main(["sync", str(drawings), "--index", str(tmp_path / "i"), "--watch", "--every", "2"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "1 renamed" in lines[1] and looks == [2.0, 2.0, 2.0]


def test_watching_survives_a_disk_that_is_away(drawings, tmp_path, capsys, monkeypatch):
    looks = []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            drawings.rename(tmp_path / "away")
        if len(looks) == 4:
            (tmp_path / "away").rename(drawings)
            (drawings / "1.png").rename(drawings / "moved.png")
        if len(looks) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", wait)
    assert main(["sync", str(drawings), "--index", str(tmp_path / "i"), "--watch", "--every", "2"]) == 130
    output = capsys.readouterr()
    assert output.err.count("looking again every 2 s") == 1 and str(drawings) in output.err
    assert "1 renamed" in output.out.splitlines()[-1]


def test_names_are_no_commands_to_the_terminal(capsys):
    done = Synced(broken={"a\x1b[2J\nb.jpg": "no\x1bimage"}, notes=["not read: 1 .x\x1bz"])
    report(Path("pho\x1btos"), done)
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err and output.err.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch 0"), (["--every", "0"], "--every 0"), (["--top-k", "0"], "--top-k 0"),
        (["--video-seconds", "-1"], "--video-seconds -1"), (["--model", "no/where"], "no/where"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(drawings, tmp_path, capsys, words, message):
    assert main(["sync", str(drawings), "--index", str(tmp_path / "i"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "i").exists()
