"""lexlip index and lexlip search, from shards to answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lexlip
from lexlip import LexLIP
from lexlip.cli import main
from lexlip.index import SparseRows, write_shard
from lexlip.train.build import build_model


@pytest.fixture
def shards(tmp_path, rows):
    (tmp_path / "vectors").mkdir()
    names = [f"photo {number}" for number in range(300)]
    write_shard(tmp_path / "vectors" / "0.arrow", [rows(200, 50, 8, ids=names[:200])])
    write_shard(tmp_path / "vectors" / "1.arrow", [rows(100, 50, 8, seed=2, ids=names[200:])])
    return tmp_path / "vectors"


def run(capsys, *arguments, status=0):
    assert main(list(map(str, arguments))) == status
    output = capsys.readouterr()
    return output.out if status != 2 else output.err


def test_from_shards_to_answers(tmp_path, shards, capsys):
    index = tmp_path / "index"
    assert json.loads(run(capsys, "index", "build", index, shards / "0.arrow", "--impact-bits", 7))["documents"] == 200
    assert json.loads(run(capsys, "index", "add", index, shards))["replaced"] == 200
    (tmp_path / "ids.txt").write_text("photo 1\nphoto 2\n")
    assert json.loads(run(capsys, "index", "delete", index, "photo 0", "--from", tmp_path / "ids.txt"))["deleted"] == 3
    assert json.loads(run(capsys, "index", "merge", index))["segments"] == 1
    info = json.loads(run(capsys, "index", "info", index))
    assert (info["documents"], info["impact_bits"], info["ids"]) == (297, 7, "string")
    assert info["bytes"] == sum(path.stat().st_size for path in index.iterdir())
    assert "297 documents" in run(capsys, "index", "verify", index)
    bag = '{"3": 0.5, "7": 1.0}'
    found = json.loads(run(capsys, "search", "--index", index, "--bag", bag, "-k", 3, "--json", "--explain"))
    hits = lexlip.Index.open(index).search({3: 0.5, 7: 1.0}, 3)
    assert [(hit["id"], hit["score"]) for hit in found] == hits
    assert all(sum(term["score"] for term in hit["terms"]) == pytest.approx(hit["score"]) for hit in found)
    lines = run(capsys, "search", "--index", index, "--bag", bag, "-k", 3, "--explain").splitlines()
    assert [line.split("  ")[1] for line in lines if not line.startswith(" ")] == [hit.id for hit in hits]


def test_verify_says_what_is_damaged(tmp_path, shards, capsys, flip):
    run(capsys, "index", "build", tmp_path / "index", shards)
    (segment,) = (tmp_path / "index").glob("*.seg")
    flip(segment, 100)
    assert "section postings is damaged" in run(capsys, "index", "verify", tmp_path / "index", status=1)


def test_verify_lists_all_damage_of_an_index_that_does_not_open(tmp_path, shards, capsys, flip):
    folder = tmp_path / "index"
    run(capsys, "index", "build", folder, shards, "--segment-documents", 100)
    first, second, third = (folder / file.name for file in lexlip.Index.open(folder).manifest.files())
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    flip(third, 100)
    lines = run(capsys, "index", "verify", folder, status=1).splitlines()
    assert [line.startswith(str(path)) for line, path in zip(lines, (first, second, third))] == [True] * 3
    assert "bytes instead of" in lines[0] and "is missing" in lines[1] and "section postings" in lines[2]
    flip(folder / "manifest", 60)
    assert "manifest is damaged" in run(capsys, "index", "verify", folder, status=1)


def test_search_by_text_image_and_words(tmp_path, make_config, livelier, tiny_data, capsys, monkeypatch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    config = make_config(vocab_size=len(tokenizer), text_positions=40, max_text_len=16)
    torch.manual_seed(0)
    model = livelier(build_model(LexLIP, config, tokenizer)).eval()
    model.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]
    images[4].save(tmp_path / "four.png")
    names = [f"image {number}" for number in range(6)]
    lexlip.index.build(tmp_path / "index", [SparseRows.from_dense(model.encode_image(images), names)])
    search = ("search", "--index", tmp_path / "index", "--model", tmp_path / "model", "-k", 2, "--json")
    assert json.loads(run(capsys, *search, "--image", tmp_path / "four.png"))[0]["id"] == "image 4"
    encoded, encode = [], LexLIP.encode_text
    monkeypatch.setattr(LexLIP, "encode_text", lambda self, texts: encoded.append(texts) or encode(self, texts))
    by_text = json.loads(run(capsys, *search, "a red dot", "--explain"))
    assert encoded == [["a red dot"]] and len(by_text) == 2  # once for the search and for what explains each hit
    scores = (model.encode_text(["a red dot"]) @ model.encode_image(images).T)[0]
    assert by_text[0]["id"] == names[int(scores.argmax())]
    assert by_text[0]["score"] == pytest.approx(float(scores.max()), abs=2e-3)
    words = {term["word"]: term["query"] for term in by_text[0]["terms"]}
    assert set(words) <= set(tokenizer.get_vocab())
    by_words = json.loads(run(capsys, *search, "--bag", json.dumps(words)))
    # The explained words are those shared with the best hit: its score stays, another's can only fall.
    assert by_words[0]["id"] == by_text[0]["id"]
    assert by_words[0]["score"] == pytest.approx(by_text[0]["score"], rel=1e-3)
    assert "is no word" in run(capsys, *search, "--bag", '{"notaword": 1}', status=2)
    (tmp_path / "no.png").write_bytes(b"PK")
    assert "no.png is no image" in run(capsys, *search, "--image", tmp_path / "no.png", status=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["index", "info", "nowhere"], "nowhere holds no index"),
        (["index", "info", __file__], f"{__file__} is a file, not a folder"),
        (["index", "build", "index", "nowhere"], "nowhere: no such file"),
        (["index", "build", "index", "vectors", "--impact-bits", "13"], "impact_bits=13"),
        (["search", "--index", "index"], "not none"),
        (["search", "--index", "index", "dog", "--bag", "{}"], "not text and bag"),
        (["search", "--index", "index", "--bag", "{"], "--bag is no JSON"),
        (["search", "--index", "index", "--bag", "[" * 100_000], "--bag is no JSON"),
        (["search", "--index", "index", "--bag", '{"a": "b"}'], "must map terms to weights"),
        (["search", "--index", "index", "--bag", '{"1": 1}', "-k", "0"], "k=0"),
        (["index", "delete", "index", "--from", "nowhere"], "nowhere cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, shards, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments[1] != "build":
        run(capsys, "index", "build", "index", "vectors")
    error = run(capsys, *arguments, status=2)
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_opening_an_index_needs_neither_numba_nor_torch(tmp_path, shards, capsys):
    run(capsys, "index", "build", tmp_path / "index", shards)
    code = (
        "import sys, lexlip; lexlip.Index.open(sys.argv[1]).info();"
        "assert not {'numba', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=True)
