"""lexlip index push, and lexlip search --engine beside lexlip search --index."""

import json

import numpy as np
import pytest

from lexlip.cli import main
from lexlip.index import SparseRows, build, write_shard
from lexlip.search.dense import write_dense


def run(capsys, *arguments, status=0):
    assert main(list(map(str, arguments))) == status
    output = capsys.readouterr()
    return output.out if status != 2 else output.err


@pytest.fixture
def index(rows, tmp_path):
    build(tmp_path / "index", [rows(60, 30, 8, empty_ratio=0, ids=[f"2024/{n}.jpg" for n in range(60)])])
    return tmp_path / "index"


def test_the_same_commands(stub, index, capsys, tmp_path):
    there = ("--engine", "opensearch", "--uri", stub().uri, "--collection", "photos")
    assert json.loads(run(capsys, "index", "push", index, *there, "--shards", 3))["documents"] == 60
    assert json.loads(run(capsys, "index", "push", index, *there))["there_before"] == 60
    asked = ("--bag", '{"1": 1, "2": 0.5}', "--json", "--explain", "-k", 7, "--filter", "not:name:*3*")
    here = json.loads(run(capsys, "search", "--index", index, *asked))
    found = json.loads(run(capsys, "search", *there, *asked))
    assert [hit["terms"] for hit in found] == [hit["terms"] for hit in here] and len(here) == 7
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in here])
    write_shard(tmp_path / "queries.arrow", [SparseRows.from_bags([{1: 1.0, 2: 0.5}, {3: 1.0}], ids=["a", "b"])])
    for place, out in ((there, "there"), (("--index", index), "here")):
        asked = ("--query-vectors", tmp_path / "queries.arrow", "-k", 5, "--out", tmp_path / out)
        run(capsys, "search", *place, *asked)
    runs = [[line.split() for line in (tmp_path / out).read_text().splitlines()] for out in ("here", "there")]
    assert [line[:4] for line in runs[0]] == [line[:4] for line in runs[1]] and len(runs[0]) == 10
    lines = run(capsys, "search", *there, "--bag", '{"1": 1}', "-k", 2, "--thumbnails", "never")
    assert lines == run(capsys, "search", "--index", index, "--bag", '{"1": 1}', "-k", 2, "--thumbnails", "never")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "qdrant"], "--engine qdrant needs --uri"),
        (["--uri", "http://h"], "or --engine and --uri"),
        (["--index", "x", "--collection", "a"], "--collection is of an engine"),
        (["--index", "x", "--engine", "qdrant", "--uri", ":memory:"], "--index or --engine"),
        (["--photos", "x", "--engine", "qdrant", "--uri", ":memory:"], "--photos syncs an index in a folder"),
        ([], "give --index, --photos for a folder of photos, or --engine"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, capsys):
    assert message in run(capsys, "search", "--bag", '{"1": 1}', *arguments, status=2)


def test_fusion_that_needs_all_ids(stub, index, capsys, tmp_path):
    there = ("--engine", "opensearch", "--uri", stub().uri)
    run(capsys, "index", "push", index, *there)
    write_dense(tmp_path / "dense", [f"2024/{n}.jpg" for n in range(60)], np.eye(60, 4, dtype=np.float32))
    np.save(tmp_path / "query.npy", np.ones(4, np.float32))
    asked = ("--bag", '{"1": 1}', "--dense", tmp_path / "dense", "--dense-query", tmp_path / "query.npy", "--json")
    assert "--fusion rerank alone" in run(capsys, "search", *there, *asked, status=2)
    here = run(capsys, "search", "--index", index, *asked, "--fusion", "rerank")
    assert run(capsys, "search", *there, *asked, "--fusion", "rerank") == here
