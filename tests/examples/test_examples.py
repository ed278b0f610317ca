"""The examples run as a user runs them, with a tiny model and images made here."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model_folder(tmp_path, make_config, tiny_data, livelier):
    from transformers import AutoTokenizer

    from lexlip import LexLIP
    from lexlip.train.build import build_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    model = build_model(LexLIP, make_config(vocab_size=len(tokenizer)), tokenizer)
    livelier(model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path):
    """Three photos, one of them in a folder of its own, and a file that is not a photo."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for name in ("cat.png", "dog.jfif", "trip/boat.png"):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as the command line does, in this process, and returns the lines that it prints."""

    def run_script(path, *arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run_script


def test_search_photos_finds_what_brute_force_finds_and_reuses_its_index(run, model_folder, photos):
    from lexlip import LexLIP

    query = "red ring on a box"
    lines = run("examples/search_photos.py", model_folder, photos, query)

    model = LexLIP.from_pretrained(model_folder)
    names = ["cat.png", "dog.jfif", "trip/boat.png"]
    scores = (model.encode_text(query) @ model.encode_image([photos / name for name in names]).T)[0].tolist()
    printed = {line.split()[1]: float(line.split()[0]) for line in lines}
    assert printed == pytest.approx(dict(zip(names, scores)), abs=2e-3)  # weights are stored in 9 bits
    assert list(printed.values()) == sorted(printed.values(), reverse=True)
    words = model.tokenizer.get_vocab()
    assert all(line.split()[2:] and set(line.split()[2:]) <= set(words) for line in lines)

    built = (photos / "lexlip.index" / "manifest").stat().st_mtime_ns
    assert run("examples/search_photos.py", model_folder, photos, query) == lines
    assert (photos / "lexlip.index" / "manifest").stat().st_mtime_ns == built


def test_search_photos_is_short():
    assert len((ROOT / "examples" / "search_photos.py").read_text().splitlines()) <= 40
