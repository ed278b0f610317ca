"""One name for one file."""

import os
import unicodedata

import pyarrow as pa
import pytest

from lexlip_data.sources.paths import normal_paths
from lexlip_data.sources.rows import Rows
from lexlip_data.sources.table import CaptionTable


def normal(folder, *paths):
    return normal_paths(pa.array(paths, pa.large_string()), folder).to_pylist()


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a.jpg", "a.jpg"), ("./a.jpg", "a.jpg"), ("././b//a.jpg", "b/a.jpg"), ("b/./a.jpg", "b/a.jpg"),
        ("b/../a.jpg", "a.jpg"), ("b/c/../../a.jpg", "a.jpg"), ("../a.jpg", "../a.jpg"), ("/x//a.jpg", "/x/a.jpg"),
        ("a..jpg", "a..jpg"), ("link/../a.jpg", "link/../a.jpg"), ("b/.hidden/a.jpg", "b/.hidden/a.jpg"),
    ],
)  # fmt: skip
def test_paths(tmp_path, path, wanted):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "far" / "away").mkdir(parents=True)
    os.symlink("far/away", tmp_path / "link")
    assert normal(tmp_path, path) == [wanted]


def test_the_form_of_an_accent_is_that_of_the_file(tmp_path):
    composed, split = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    (tmp_path / split).touch()
    if not os.path.lexists(tmp_path / composed):  # some systems take both for one
        assert normal(tmp_path, composed, split, "plain.jpg") == [split, split, "plain.jpg"]
    assert normal(tmp_path, "absent é.jpg") == ["absent é.jpg"]


def test_one_file_is_one_image():
    rows = Rows({"title": ["a", "b", "c"], "filepath": ["./x.jpg", "x.jpg", "y//../x.jpg"]})
    table = CaptionTable("mine", "train", rows)
    assert len(table) == 1 and table.captions(0) == ["a", "b", "c"] and table.image_id(0) == "x.jpg"
    rows = Rows({"title": ["a", "b"], "filepath": ["./x.jpg", "x.jpg"], "image_id": ["1", "1"]})
    assert CaptionTable("mine", "train", rows).left_out == []
