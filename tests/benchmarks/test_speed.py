"""The speed benchmarks on small sizes: the rows they write, and that both paths' results agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROW = {"name", "device", "fast", "textbook", "ratio"}


def rows_of(tmp_path, *words):
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:], "--repeats", "1", "--json", str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "f").read_text())
    for row in rows:
        assert row.keys() >= ROW and row["name"] in done.stdout
        assert row["ratio"] == row["textbook"] / row["fast"] > 0
    return rows


def test_head(tmp_path):
    sizes = ["--batch", "3", "--length", "7", "--width", "16", "--vocab", "1000"]
    rows = rows_of(tmp_path, "head.py", *sizes)
    assert len(rows) == 4
    for row in rows:
        assert max(value for name, value in row.items() if name.startswith("difference")) < 1e-5
        assert row["maximum_missed_by"] < 1e-5 and row["memory_ratio"] > 0


def test_step(tmp_path):
    rows = rows_of(tmp_path, "step.py", "--towers", "tiny", "--batch", "4", "--image-size", "32", "--queue", "8")
    assert [row["name"].split(",")[1] for row in rows] == [" phase 1", " phase 2"]
    for row in rows:
        assert row["loss_difference"] < 1e-5 and row["gradient_difference"] < 1e-4
        assert 0 < row["share_of_product_rate"] < 1


def test_data_and_evaluation(tmp_path):
    data = rows_of(tmp_path, "data.py", "--pictures", "30", "--size", "32", "--batch", "8")
    against = ("of bare loop, Pillow", "of bare loop, simplejpeg", "of usual loader")
    assert [row["name"] for row in data] == [f"made, {what}" for what in against]
    assert [row["decoder"] for row in data if row["yardstick"]] == ["Pillow, draft mode"]
    assert len(data[0]["pictures_per_second"]) == len(data[0]["memory_bytes"]) == 3
    sizes = ["--pictures", "60", "--captions", "300", "--terms", "8", "--vocab", "500"]
    (row,) = rows_of(tmp_path, "evaluate.py", *sizes, "--no-memory")
    assert row["different_ranks_of_a_tenth"] == 0


def test_results_that_differ_are_an_error(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness
    import head
    import torch

    right = head.max_logits
    monkeypatch.setattr(head, "max_logits", lambda *args, **named: right(*args, **named) + 0.01)
    sizes = ["--batch", "2", "--length", "5", "--width", "8", "--vocab", "100", "--cases", "every word"]
    with pytest.raises(SystemExit, match="results differ: head, every word"):
        head.main([*sizes, "--no-memory", "--repeats", "1", "--threads", str(torch.get_num_threads())])
    assert harness.ROOT == BENCHMARKS.parent


def test_all_runs_what_it_is_asked_for(tmp_path):
    rows = rows_of(tmp_path, "all.py", "--only", "head", "--batch=2", "--length=5", "--width=8", "--vocab=100")
    assert [row["name"].split(",")[0] for row in rows] == ["head"] * 4
