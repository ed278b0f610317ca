"""The speed benchmarks on small sizes: the rows they write, and that both paths' results agree."""

import json
import subprocess
import sys

import pytest

ROW = {"name", "device", "fast", "textbook", "ratio"}


@pytest.fixture
def rows_of(benchmarks, tmp_path):
    """Runs a benchmark once; gives the rows that it writes."""

    def run(script, *options):
        command = [sys.executable, str(benchmarks / script), *options, "--json", str(tmp_path / "rows.json")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "rows.json").read_text())
        for row in rows:
            assert row.keys() >= ROW and row["name"] in done.stdout
            assert row["ratio"] == row["textbook"] / row["fast"] > 0
        return rows

    return run


SCRIPTS = tuple("all cold_start data encode evaluate grad_cache head large_scale scaling serve step".split())
HELP = """
import contextlib, io, runpy, sys
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    sys.argv = [f"{folder}/{name}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(name, "usage:" in out.getvalue() and "--json" in out.getvalue())
"""


def test_every_script_has_a_help(benchmarks):
    pytest.importorskip("httpx", reason="needs the extra dev")
    assert SCRIPTS == tuple(sorted(file.stem for file in benchmarks.glob("*.py") if "__main__" in file.read_text()))
    command = [sys.executable, "-c", HELP, str(benchmarks), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} True" for name in SCRIPTS]


def test_head(rows_of):
    sizes = ["--batch", "3", "--length", "7", "--width", "16", "--vocab", "1000"]
    rows = rows_of("head.py", "--repeats", "1", *sizes)
    assert len(rows) == 4
    for row in rows:
        assert max(value for name, value in row.items() if name.startswith("difference")) < 1e-5
        assert row["maximum_missed_by"] < 1e-5 and row["memory_ratio"] > 0


def test_step(rows_of):
    sizes = ["--towers", "tiny", "--batch", "4", "--image-size", "32", "--queue", "8"]
    rows = rows_of("step.py", "--repeats", "1", *sizes)
    assert [row["name"].split(",")[1] for row in rows] == [" phase 1", " phase 2"]
    for row in rows:
        assert row["loss_difference"] < 1e-5 and row["gradient_difference"] < 1e-4
        assert 0 < row["ratio_of_product_rate"] < 1


def test_data(rows_of):
    data = rows_of("data.py", "--repeats", "1", "--pictures", "30", "--size", "32", "--batch", "8")
    against = ("of bare loop, Pillow", "of bare loop, simplejpeg", "of usual loader")
    assert [row["name"] for row in data] == [f"made, {what}" for what in against]
    assert [row["decoder"] for row in data if row["yardstick"]] == ["Pillow, draft mode"]
    assert len(data[0]["pictures_per_second"]) == len(data[0]["memory_bytes"]) == 3


def test_encoding(rows_of):
    for package in ("sentence_transformers", "open_clip"):
        pytest.importorskip(package, reason="needs the extras sentence-transformers and open_clip")
    sizes = ["--captions", "9", "--photos", "3", "--hidden", "64", "--layers", "1", "--image-size", "32"]
    rows = rows_of("encode.py", "--repeats", "1", "--no-memory", "--vit", "test_vit", "--batch", "4", *sizes)
    assert [row["name"] for row in rows] == ["captions", "photos"]
    assert all(row["agrees"] and row["per_second"] > 0 for row in rows)


def test_evaluation(rows_of):
    sizes = ["--pictures", "60", "--captions", "300", "--terms", "8", "--vocab", "500"]
    (row,) = rows_of("evaluate.py", "--repeats", "1", *sizes, "--no-memory")
    assert row["different_ranks_of_a_tenth"] == 0


@pytest.mark.parametrize("phase", ["Phase1", "Phase2"])
def test_both_steps_of_the_gradient_cache_see_the_same(phase):
    import grad_cache
    import torch
    from batches import random_batch

    config = grad_cache.make_config(phase, 8, 0)
    plain, cached = (vars(grad_cache.make_config(phase, 8, chunk)) for chunk in (0, 2))
    different = {name: (value, cached[name]) for name, value in plain.items() if value != cached[name]}
    assert different == {"grad_cache_chunk": (None, 2)} and plain["drop_rate"] == 0
    lengths = torch.tensor([4, 16, 9])
    batch = random_batch(config, lengths, torch.Generator().manual_seed(0))
    assert batch["text_mask"].sum(1).tolist() == lengths.tolist()
    assert batch["image"].shape == (3, 3, plain["image_size"], plain["image_size"])
    for side in ("encoder", "decoder"):
        hidden = batch[f"{side}_labels"] != -100
        assert hidden.any(1).all() and not (hidden & (batch["text_mask"] == 0)).any()
        assert torch.equal(torch.where(hidden, batch[f"{side}_labels"], batch[f"{side}_ids"]), batch["text_ids"])


def test_results_that_differ_are_an_error(benchmarks, monkeypatch):
    import checkout
    import head
    import torch

    right = head.max_logits
    monkeypatch.setattr(head, "max_logits", lambda *args, **named: right(*args, **named) + 0.01)
    sizes = ["--batch", "2", "--length", "5", "--width", "8", "--vocab", "100", "--cases", "every word"]
    with pytest.raises(SystemExit, match="results differ: head, every word"):
        head.main([*sizes, "--no-memory", "--repeats", "1", "--threads", str(torch.get_num_threads())])
    assert checkout.ROOT == benchmarks.parent


def test_all_runs_those_that_are_named(rows_of):
    sizes = ["--batch=2", "--length=5", "--width=8", "--vocab=100"]
    rows = rows_of("all.py", "--only", "head", "--repeats", "1", *sizes)
    assert [row["name"].split(",")[0] for row in rows] == ["head"] * 4
