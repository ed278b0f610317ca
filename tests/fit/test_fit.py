"""lexlip fit: settings by size, and from images to a model folder in one command."""

import re

import frozen_tiny
import pytest

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.errors import ConfigError
from lexlip.fit.settings import FEWEST, TABLE, keys_of, settings_for


def test_more_images_get_larger_batches_more_steps_and_less_dropout():
    for less, more in zip(TABLE, TABLE[1:]):
        assert less.images < more.images and less.batch_size <= more.batch_size
        assert less.dense_steps <= more.dense_steps and less.lexicon_steps <= more.lexicon_steps
        assert less.image_dropout >= more.image_dropout and less.text_dropout >= more.text_dropout
        assert less.term_min_count <= more.term_min_count and less.flops_weight <= more.flops_weight
    assert all(settings_for(images).batch_size <= images for images in (FEWEST, 300, 1500, 10**7))
    small = settings_for(1000)
    assert keys_of(small, "lexicon") == {**keys_of(small, "dense"), "flops_weight": small.flops_weight}
    with pytest.raises(ConfigError, match="99 training images are too few"):
        settings_for(99)


def test_from_images_to_a_folder_and_again(frozen, tmp_path, capsys):
    table = frozen_tiny.write_table(tmp_path / "data", 120)
    command = ["fit", "--data", table, "--image", frozen.image, "--text", frozen.text, "--out", tmp_path / "model"]
    command = [*map(str, command), "--head-text", "lookup", "--embed-towers", "--half", "--steps", "2"]
    assert not main(command)
    printed = capsys.readouterr().out
    lines = printed.splitlines()  # what it will take comes first
    assert lines[0].startswith("training on 108 photos, on one CPU thread: 2 steps of the dense reference, less than a")
    assert re.search(r" and 2 steps of the lexicon with about \d+ terms, less than a minute$", lines[0])
    assert " photos and 240 captions, " in lines[1]
    assert "% of the photos have a word of their captions" in printed
    assert len(re.findall(r"^box\d+: ", printed, re.MULTILINE)) == 12
    assert (tmp_path / "model.work" / "report.html").read_text().count("<figure>") == 12
    model = LexLIP.from_pretrained(tmp_path / "model")
    vectors = model.encode_image([table.parent / "0.png"])
    assert model.config.text_head == "table" and vectors.any()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "model.work").rglob("*.ckpt")}
    lexicon = next(
        file for file in times if "lexicon" in str(file) and file.name.startswith("step_") and not file.is_symlink()
    )
    assert not main(command)  # nothing is trained again
    assert "training on" not in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "model.work").rglob("*.ckpt")} == times
    lexicon.unlink()  # as after an interruption
    assert not main(command)
    told = capsys.readouterr().out.splitlines()[0]
    assert "steps of the lexicon" in told and "dense" not in told
    assert lexicon.exists()
