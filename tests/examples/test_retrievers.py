"""The retrievers for other libraries, where those are installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from lexlip.index import SparseRows, build
from lexlip.index.lookup import TableModel
from lexlip.index.origin import ModelStamp, Origin, Source
from lexlip.pretrained import find

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def index(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "beach.jpg").write_bytes(b"a photo")
    model = TableModel(find("photos-small"))
    words = model.tokenizer.get_vocab()
    bags = [{words["dog"]: 0.5, words["beach"]: 0.7}, {words["dog"]: 0.9, words["cat"]: 0.2}]
    rows = SparseRows.from_bags(bags, ["beach.jpg", "cat.jpg"])
    origin = Origin(ModelStamp("photos-small", "", model.fingerprint), Source(str(tmp_path / "photos"), "images"))
    build(tmp_path / "i", [SparseRows(rows.ids, rows.offsets, rows.terms, rows.weights, "x", origin)])
    return str(tmp_path / "i")


def example(name, needs):
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LexLIPRetriever


def test_photos_with_their_files_and_words(index):
    from lexlip.search.retriever import PhotoSearch

    (found,) = PhotoSearch(index)("a dog on the beach -cat")
    assert found.id == "beach.jpg" and found.path.endswith("photos/beach.jpg") and found.words[:2] == ("beach", "dog")
    assert [hit.path for hit in PhotoSearch(index)("cat")] == [None]  # its file is gone


def test_langchain(index):
    found = example("langchain_retriever", "langchain_core")(index, k=5).invoke("a dog -cat")
    assert [document.metadata["id"] for document in found] == ["beach.jpg"] and "dog" in found[0].page_content


def test_llamaindex(index):
    found = example("llamaindex_retriever", "llama_index.core")(index).retrieve("a dog -cat")
    assert [node.node.node_id for node in found] == ["beach.jpg"] and found[0].node.image_path.endswith("beach.jpg")


def test_haystack(index):
    found = example("haystack_retriever", "haystack")(index).run("a dog")["documents"]
    assert [document.id for document in found] == ["cat.jpg", "beach.jpg"] and found[0].score > found[1].score


@pytest.mark.parametrize("name", ["langchain_retriever", "llamaindex_retriever", "haystack_retriever"])
def test_they_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 35
