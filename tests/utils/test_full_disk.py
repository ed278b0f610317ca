"""A disk that is full, or a folder that cannot be written: one line that names the file, and nothing of before is lost.

`ulimit -f` stands in for a disk: it limits the length of a file, and writing beyond it fails as on a full disk.
"""

import errno
import importlib.util
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lexlip import LexLIP
from lexlip.encode.files import LineTexts
from lexlip.encode.run import encode
from lexlip.index import Index, SparseRows, add, build, delete, merge
from lexlip.index.export import export
from lexlip.models.weights import save_tensors
from lexlip.train.build import build_model
from lexlip.utils.files import write_whole
from lexlip_data.command import reason
from lexlip_data.convert.vocabulary import build_tokenizer
from lexlip_data.sources.files import writing
from lexlip_data.sources.skipped import Skipped, write_list


@pytest.fixture
def full():
    """full(length): no file may become longer; without one it may again."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(length: int = before[0]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))

    yield limit
    limit()
    signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tensors() -> dict:
    return {"a": torch.zeros(1 << 16)}


@pytest.mark.parametrize("write", [
    lambda path: write_whole(path, lambda file: file.write(bytes(1 << 18))),
    lambda path: write_whole(path, lambda file: torch.save(tensors(), file)),  # torch says "unexpected pos"
    lambda path: save_tensors(tensors(), path),  # an error of Rust
    lambda path: write_list(path, [Skipped("a", "b", "c", "d" * 100)] * 1000),
])  # fmt: skip
def test_the_error_names_the_file_and_the_older_one_stays(tmp_path, full, write):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    full(1 << 14)
    with pytest.raises(OSError) as error:
        write(path)
    full()
    assert reason(error.value) == f"{path}: File too large"
    assert contents(tmp_path) == {"file": b"before"}


def test_other_errors_are_as_they_were(tmp_path):
    for raised in (ValueError("no"), OSError("no"), FileNotFoundError(errno.ENOENT, "none", "other")):
        with pytest.raises(type(raised)) as error, writing(tmp_path):
            raise raised
        assert error.value is raised


def rows(first: int, documents: int = 400) -> SparseRows:
    ids = [f"{'x' * 60}{number:06d}" for number in np.random.default_rng(0).permutation(documents) + first]
    bags = [{int(term): 1.0 for term in np.random.default_rng(n).choice(3000, 30, False)} for n in range(documents)]
    return SparseRows.from_bags(bags, ids=ids)


@pytest.mark.parametrize("change", [
    lambda index: add(index, [rows(400)]),
    lambda index: merge(index),
    lambda index: build(index, [rows(0)], overwrite=True),
    lambda index: delete(index, [f"{'x' * 60}000001"]),
], ids=["add", "merge", "build", "delete"])  # fmt: skip
def test_an_index_stays_as_it_was(tmp_path, full, change):
    index = tmp_path / "index"
    build(index, [rows(0, 200), rows(200, 200)], segment_documents=200)
    before = contents(index)
    full(64)
    with pytest.raises(OSError) as error:
        change(index)
    full()
    assert reason(error.value).startswith(f"{index}: File too large") and contents(index) == before
    assert len(Index.open(index)) == 400


@pytest.mark.parametrize("format", ["opensearch", "anserini", "ciff"])
def test_an_export_leaves_nothing(tmp_path, full, format):
    build(tmp_path / "index", [rows(0)])
    index = Index.open(tmp_path / "index")
    full(1 << 10)
    with pytest.raises(OSError) as error:
        export(index, format, tmp_path / "out")
    full()
    assert reason(error.value) == f"{tmp_path}/out: File too large" and os.listdir(tmp_path) == ["index"]


@pytest.fixture
def model(make_config, tiny_data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    return build_model(LexLIP, make_config(vocab_size=len(tokenizer)), tokenizer)


@pytest.mark.parametrize("length", [1 << 9, 1 << 12])  # the config does not fit, the weights do not
def test_a_model_folder_stays_as_it_was(tmp_path, full, model, length):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    before = contents(folder)
    full(length)
    with pytest.raises(OSError) as error:
        model.save_pretrained(folder)
    full()
    assert reason(error.value) in (f"{folder}: File too large", f"{folder}/preprocessor_config.json: File too large")
    assert contents(folder) == before
    LexLIP.from_pretrained(folder)


def test_a_vocabulary_stays_as_it_was(tmp_path, full):
    build_tokenizer(["a dog"], tmp_path / "v", 100)
    before = contents(tmp_path / "v")
    full(500)
    with pytest.raises(OSError) as error:
        build_tokenizer(["a dog and many other words"], tmp_path / "v", 100)
    full()
    assert reason(error.value) == f"{tmp_path}/v: File too large" and contents(tmp_path / "v") == before


def test_encoding_names_the_shard_and_goes_on(tmp_path, full, model):
    lines = tmp_path / "lines.txt"
    lines.write_text("a box\n" * 40)
    encode(model, LineTexts(lines), tmp_path / "out", shard_documents=20)
    (tmp_path / "out" / "shard-00001.arrow").unlink()
    before = contents(tmp_path / "out")
    full(1 << 9)
    with pytest.raises(OSError) as error:
        encode(model, LineTexts(lines), tmp_path / "out", shard_documents=20)
    full()
    assert reason(error.value) == f"{tmp_path}/out/shard-00001.arrow: File too large"
    assert contents(tmp_path / "out") == before
    assert encode(model, LineTexts(lines), tmp_path / "out", shard_documents=20).encoded == 20


def test_a_function_that_cannot_be_kept_compiled_runs(tmp_path, full):
    """Else the first search on a full disk would fail, though it writes nothing."""
    source = tmp_path / "kernel.py"
    source.write_text("from lexlip.index.compiled import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("kernel", source)
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    full(16)
    assert kernel.twice(4) == 8
    full()
    assert kernel.twice(4.0) == 8.0 and list((tmp_path / "__pycache__").glob("*.nbc"))
