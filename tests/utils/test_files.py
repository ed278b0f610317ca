"""Files that are whole or not there."""

import os

import pytest

from lexlip.utils.files import write_json, write_whole


def test_write_json_leaves_one_whole_file(tmp_path):
    write_json({"a": 1}, tmp_path / "new" / "m.json")
    write_json({"a": 2}, tmp_path / "new" / "m.json")
    assert (tmp_path / "new" / "m.json").read_text() == '{\n  "a": 2\n}\n'
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.json"]


def test_write_whole_leaves_the_old_file_if_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        write_whole(path, lambda file: file.write(b"new") and (_ for _ in ()).throw(OSError("full")))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
