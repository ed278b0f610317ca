"""Run files and qrels: from the command line to ir_measures, and that they agree with the evaluation of a training."""

import json
import re

import numpy as np
import pytest
import runs
from runs import EVALUATE

from lexlip.cli import main
from lexlip.errors import IndexingError, UserError
from lexlip.index.run_files import read_queries, trec_id
from Phase2.module import Phase2Module


@pytest.fixture(scope="module")
def world(tiny_data, tmp_path_factory):
    """A model folder, indexes of the test split's images and captions, and what a training's evaluation says of it."""
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    import tiny
    import torch
    from transformers import AutoTokenizer

    from lexlip import LexLIP
    from lexlip.train.build import build_model
    from lexlip.train.config import Config, base

    root = tmp_path_factory.mktemp("runs")
    keys = {**base(), **tiny.MODEL, "batch_size": 4, "per_gpu_batchsize": 4, "vocab_size": tiny_data["words"]}
    model = build_model(LexLIP, Config.checked(keys), AutoTokenizer.from_pretrained(tiny_data["tokenizer"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(root / "model")
    table = str(tiny_data["root"] / "tiny" / "tiny_test.tsv")
    for what in ("images", "texts"):
        vectors, index = str(root / f"v_{what}"), str(root / f"i_{what}")
        main(["encode", "--model", str(root / "model"), "--tsv", table, "--what", what, "--out", vectors])
        main(["index", "build", index, vectors, "--impact-bits", "12"])
    main(["qrels", "--tsv", table, "--out", str(root / "t2i.qrels"), "--queries", str(root / "q.tsv")])
    main(["qrels", "--tsv", table, "--direction", "i2t", "--out", str(root / "i2t.qrels")])
    runs.run_phase(
        tiny_data, root, Phase2Module, EVALUATE, load_path=str(root / "model"), metrics_file=str(root / "metrics.json")
    )
    return root


def measured(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_recall_of_run_files_is_that_of_the_evaluation(world, capsys):
    reported = json.loads((world / "metrics.json").read_text())["tiny"]
    search = ["search", "-k", "10", "--format", "trec", "--index"]
    assert (
        main([*search, str(world / "i_images"), "--queries", str(world / "q.tsv"), "--out", str(world / "a.run")]) == 0
    )
    vectors = ["--query-vectors", str(world / "v_images"), "--out", str(world / "b.run")]
    assert main([*search, str(world / "i_texts"), *vectors]) == 0
    for direction, run in (("t2i", "a.run"), ("i2t", "b.run")):
        result = measured(capsys, "--run", world / run, "--qrels", world / f"{direction}.qrels")
        for k in (1, 5, 10):
            hit_rate = result["measures"][f"hit_rate@{k}"]
            assert hit_rate == pytest.approx(reported[direction][f"R@{k}"] / 100, abs=1e-5)
        if direction == "t2i":  # one right image: both are one number
            assert result["measures"]["recall@1"] == result["measures"]["hit_rate@1"]
        else:  # two right captions: at 1 the recall can be half at most
            assert result["measures"]["recall@1"] == result["measures"]["hit_rate@1"] / 2
        assert result["queries"] == (8 if direction == "t2i" else 4)
    assert 0 < reported["t2i"]["R@1"] < 100


def test_lines_of_a_run_file(world):
    out = world / "lines.run"
    main(["search", "--index", str(world / "i_images"), "--queries", str(world / "q.tsv"), "-k", "3", "--out", str(out),
          "--run-name", "mine"])  # fmt: skip
    from lexlip.index import Index

    index = Index.open(world / "i_images", str(world / "model"))
    lines = [line.split(" ") for line in out.read_text().splitlines()]
    for query, text in read_queries(world / "q.tsv"):
        hits = index.search(text, 3)
        found = [line for line in lines if line[0] == query]
        assert [(line[2], int(line[3])) for line in found] == [(hit.id, rank) for rank, hit in enumerate(hits, 1)]
        np.testing.assert_allclose([float(line[4]) for line in found], [hit.score for hit in hits], atol=1e-5)
        assert all(line[1] == "Q0" and line[5] == "mine" for line in found)


def test_two_runs_are_compared(world, capsys):
    pytest.importorskip("ranx", reason="pip install ranx")
    qrels = [(f"q{n}", f"d{n}") for n in range(40)]
    (world / "x.qrels").write_text("".join(f"{q} 0 {d} 1\n" for q, d in qrels))
    good = "".join(f"{q} Q0 {d} 1 0.9 good\n" for q, d in qrels)
    bad = "".join(f"{q} Q0 {d if n % 4 else 'other'} 1 0.9 bad\n" for n, (q, d) in enumerate(qrels[:-1]))
    (world / "good.run").write_text(good)
    (world / "bad.run").write_text(bad)
    for test in ("fisher", "student"):
        result = measured(
            capsys, "--run", world / "good.run", "--baseline", world / "bad.run", "--qrels", world / "x.qrels",
            "--test", test, "--measures", "hit_rate@1", "nDCG@10", "--metrics-file", world / "m.json",
        )  # fmt: skip
        assert result["measures"]["hit_rate@1"] == 1 and result["baseline"]["measures"]["hit_rate@1"] == 29 / 40
        assert 0 <= result["baseline"]["p"]["hit_rate@1"] < 0.01
        assert json.loads((world / "m.json").read_text()) == result
    same = measured(capsys, "--run", world / "good.run", "--baseline", world / "good.run", "--qrels", world / "x.qrels")
    assert set(same["baseline"]["p"].values()) == {1.0}


def test_refusals(world, tmp_path, capsys):
    index, queries = ["search", "--index", str(world / "i_images")], str(world / "q.tsv")
    (tmp_path / "no_tab.tsv").write_text("1\ta red dot\njust text\n")
    (tmp_path / "twice.tsv").write_text("1\ta\n1\tb\n")
    (tmp_path / "other.qrels").write_text("x 0 y 1\n")
    run = str(world / "a.run")
    for words, says in (
        ([*index, "--queries", queries], "--out"), ([*index, "a dog", "--queries", queries, "--out", "r"], "together"),
        ([*index, "a dog", "--out", "r"], "--out r: a run file"),
        ([*index, "--queries", queries, "--out", "r", "--explain"], "--explain"),
        ([*index, "--queries", str(tmp_path / "no_tab.tsv"), "--out", "r"], "no_tab.tsv, line 2: 'just text'"),
        ([*index, "--queries", str(tmp_path / "twice.tsv"), "--out", "r"], "line 2: the id '1' came before"),
        ([*index, "--queries", queries, "--out", "r", "--run-name", "two words"], "one word"),
        (["evaluate", "--run", run, "--qrels", str(tmp_path / "other.qrels")], "has no query of"),
        (["evaluate", "--run", queries, "--qrels", str(world / "t2i.qrels")], "not a run file"),
        (["evaluate", "--run", run, "--qrels", str(world / "t2i.qrels"), "--measures", "goodness"], "no measure"),
    ):  # fmt: skip
        assert main(words) == 2, words
        assert re.search(says, capsys.readouterr().err), words
    assert not (tmp_path / "r").exists()


def test_ids_without_spaces():
    assert trec_id("a b/ü%.jpg") == "a%20b/ü%25.jpg" and trec_id(7) == "7" and trec_id("a\u2003b") == "a%E2%80%83b"
    with pytest.raises(IndexingError):
        trec_id("")


def test_one_measure_by_two_names(tmp_path):
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    from lexlip.evaluate.run_files import evaluate_run

    (tmp_path / "a.qrels").write_text("q 0 d 1\n")
    (tmp_path / "a.run").write_text("q Q0 d 1 0.5 mine\n")
    found = evaluate_run(tmp_path / "a.run", tmp_path / "a.qrels", ["hit_rate@1", "Success@1"])
    assert {name: values.tolist() for name, values in found.items()} == {"hit_rate@1": [1.0], "Success@1": [1.0]}


RUN, QRELS = "q Q0 d 1 0.5 mine\nq Q0 e 2 0.4 mine\n", "q 0 d 1\nq 0 e 0\n"


@pytest.mark.parametrize(
    ("run", "qrels", "says"),
    [
        (RUN + "q Q0 f\n", QRELS, "a.run, line 3: 'q Q0 f' has 3 fields; not a run file"),
        (RUN + "\nq Q0 f 3 nan x\n", QRELS, "a.run, line 4: the score 'nan' is no finite number"),
        (RUN + "q Q0 f 3 x x\n", QRELS, "a.run, line 3: the score 'x'"),
        (RUN + "q Q0 d 3 0.1 x\n", QRELS, "a.run, line 3: document 'd' of query 'q' came before"),
        ("\xff\xfe", QRELS, "a.run"), ("", QRELS, "a.run has no query of"),
        (RUN, QRELS + "q 0\n", "a.qrels, line 3: 'q 0' has 2 fields; not a file of qrels"),
        (RUN, QRELS + "q 0 f x\n", "a.qrels, line 3: the relevance 'x' is no whole number"),
        (RUN, QRELS + "q 0 f 9999999999\n", "a.qrels, line 3: the relevance 9999999999 is more than"),
        (RUN, QRELS + "q 0 d 0\n", "a.qrels, line 3: document 'd' of query 'q' came before with another relevance"),
        (RUN, "q 0 d 0\n", "a.qrels: no line with a relevance above 0"), (RUN, RUN, "a.qrels, line 1"),
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_named(tmp_path, capsys, run, qrels, says):
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    (tmp_path / "a.run").write_bytes(run.encode("latin-1"))
    (tmp_path / "a.qrels").write_text(qrels)
    assert main(["evaluate", "--run", str(tmp_path / "a.run"), "--qrels", str(tmp_path / "a.qrels")]) == 2
    assert says in capsys.readouterr().err


def test_what_ir_measures_reads_is_read_alike(tmp_path):
    """TABs, CRLF, a byte order mark, a right document twice; and our names take any cutoff."""
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    from lexlip.evaluate.run_files import evaluate_run

    (tmp_path / "a.run").write_bytes(b"\xef\xbb\xbf" + RUN.replace(" ", "\t").replace("\n", "\r\n").encode())
    (tmp_path / "a.qrels").write_text("q 0 e 1\nq 0 e 1\nq 0 far 1\n")
    found = evaluate_run(tmp_path / "a.run", tmp_path / "a.qrels", ["hit_rate@1", "hit_rate@2", "recall@2"])
    assert {name: values.tolist() for name, values in found.items()} == {
        "hit_rate@1": [0.0], "hit_rate@2": [1.0], "recall@2": [0.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    "measure", ["nDCG@0", "recall@0", "hit_rate@-1", "nDCG@9999999999999999999999", "hit_rate@x", "hit_rate", "Success"]
)
def test_a_cutoff_that_is_none_is_refused(tmp_path, measure):
    """trec_eval ends its process where it is asked for 0."""
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    from lexlip.evaluate.run_files import evaluate_run

    (tmp_path / "a.run").write_text(RUN)
    (tmp_path / "a.qrels").write_text(QRELS)
    with pytest.raises(UserError, match="no measure"):
        evaluate_run(tmp_path / "a.run", tmp_path / "a.qrels", [measure])


def test_what_lowers_the_numbers_is_told(tmp_path, capsys):
    pytest.importorskip("ir_measures", reason="pip install ir-measures")
    (tmp_path / "a.run").write_text(RUN)
    (tmp_path / "a.qrels").write_text("q 0 images/d.jpg 1\nother 0 images/e.jpg 1\n")
    assert main(["evaluate", "--run", str(tmp_path / "a.run"), "--qrels", str(tmp_path / "a.qrels")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "1 of the 2 queries" in told[0] and "no document of" in told[1]
