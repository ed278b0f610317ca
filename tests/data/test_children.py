"""No module that lies in the current folder runs in another process of ours."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexlip_data.children import python_command
from lexlip_data.convert.image_reader import ImageReader
from lexlip_data.sources.parquet import check_metadata


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The current folder, with modules that leave a file `ran` when they are imported."""
    for name in ("json", "pyarrow", "pickle", "signal", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parquet_files_are_looked_at(hostile):
    pq.write_table(pa.table({"a": [1]}), "a.parquet")
    check_metadata([hostile / "a.parquet"])
    assert not (hostile / "ran").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the current folder")
def test_images_are_read(hostile):
    with ImageReader(1) as reader:
        assert [kind for _, kind, _ in reader.map([str(hostile / "gone.png")])] == ["missing"]
    assert not (hostile / "ran").exists()


def test_a_command_has_this_path_and_its_arguments(hostile, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(hostile / "odd ü '\udcff:x")])
    code = "print(ascii((sys.path, sys.argv[1:])))"
    done = subprocess.run(python_command(code, "a b"), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(([os.path.abspath(entry) for entry in sys.path], ["a b"]))
