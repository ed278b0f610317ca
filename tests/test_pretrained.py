"""The model that comes with the package: it opens, encodes, answers without torch, and says what it may be used for."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lexlip import LexLIP, pretrained
from lexlip.index import SparseRows, build
from lexlip.index.lookup import TableModel
from lexlip.index.remembered import remembered
from lexlip.models.fingerprint import fingerprint

FOLDER = pretrained.find(pretrained.DEFAULT)
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
MOST_BYTES = 16 << 20  # of the wheel


@pytest.fixture(scope="module")
def model():
    return LexLIP.from_pretrained("photos-small")


def test_it_encodes_images_and_texts_by_name(model):
    vectors = model.encode_image([Image.new("RGB", (300, 200), (40, 160, 60)), Image.new("RGB", (50, 90))])
    assert vectors.shape == (2, len(model.tokenizer)) and torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    texts = model.encode_text(["a dog runs on the beach", ""])
    words = [word for word, _ in model.lexicon(texts, 8)[0]]
    assert {"dog", "beach"} <= set(words) and not texts[1].any()


def test_its_table_gives_the_same_queries_without_torch(model):
    table, queries = TableModel(FOLDER), ["a dog runs on the beach, a dog", "", "zzyzx!", "Zwei Hunde"]
    np.testing.assert_allclose(table.encode_text(queries), model.encode_text(queries).numpy(), atol=1e-6)
    assert table.fingerprint == fingerprint(model)
    code = (
        "import sys; from lexlip.index.lookup import TableModel; from lexlip import pretrained;"
        "TableModel(pretrained.find('photos-small')).encode_text(['a dog']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_small_and_names_no_path_of_the_machine_that_made_it():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    for file in files:
        if file.suffix in (".json", ".md"):
            assert not {"/tmp", "/home", "/root", "/work"} & set(file.read_text(encoding="utf-8").split('"')), file
    assert "research and education only" in CARD and "Flickr8k" in CARD


def test_its_card_shows_what_it_says(model):
    query, told = re.search(r'^The query "(.+)": (.+)\.$', CARD, re.MULTILINE).groups()
    words = model.lexicon(model.encode_text([query]), 7)[0]
    assert told == ", ".join(f"{word} {weight:.2f}" for word, weight in words)
    recalls = json.loads((FOLDER / "metrics.json").read_text())
    for name, metrics in (("uncut", recalls["lexicon"]), ("64 terms", recalls["lexicon"]["pruned"]["64"])):
        assert re.search(rf"^\| {name} \|.*\| {metrics['rsum']:.1f} \|", CARD, re.MULTILINE)


def test_what_it_may_be_used_for_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        pretrained.tell_of(FOLDER)
    assert capsys.readouterr().err.count("research and education only") == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "lexlip" / "told"))  # a file: nothing can be remembered
    for _ in range(2):
        pretrained.tell_of(FOLDER)
    assert capsys.readouterr().err.count("research and education only") == 2


def test_an_index_that_names_no_model_is_searched_with_it(tmp_path):
    rows = SparseRows.from_bags([{3899: 1.0}], ids=["dog"])
    build(tmp_path / "index", [rows])
    assert remembered(tmp_path / "index") == "photos-small"


def test_other_names_and_folders_are_not_taken_for_it(tmp_path):
    assert pretrained.find("photos-large") is None and pretrained.find("../pretrained/photos-small") is None
    assert pretrained.find(tmp_path / "photos-small") is None
