"""Scripts and benchmarks end as every command does: one line, and the right exit status."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = sorted(
    path
    for path in [*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "datasets/convert.py"]
    if "__main__" in path.read_text().rpartition("\n\n\n")[2]
)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda path: path.name)
def test_every_entry_point_ends_as_a_command(entry):
    last = entry.read_text().rpartition("\n\n\n")[2]
    assert "run_command(main" in last or "checkout.run(main)" in last or "sys.exit(main())" in last
    if "sys.exit(main())" in last:
        assert "return run_command(" in entry.read_text()


def test_all_are_looked_at():
    assert {"convert.py", "report.py", "fuzz.py", "step.py", "all.py", "large_scale.py"} <= {p.name for p in ENTRIES}


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("datasets/convert.py", "pyarrow"), ("benchmarks/head.py", "torch"), ("benchmarks/large_scale.py", "torch"),
        ("scripts/long_text_experiment.py", "torch"), ("scripts/soak.py", "torch"),
    ],
)  # fmt: skip
def test_ctrl_c_while_a_script_loads(script, heavy, tmp_path):
    """A module in the place of a heavy one presses Ctrl-C."""
    (tmp_path / f"{heavy}.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)")
    done = run(script, "--help", PYTHONPATH=os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "datasets"))))
    assert done.returncode == 130 and done.stderr.startswith("stopped") and done.stderr.count("\n") == 1, done.stderr


def run(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, words)], capture_output=True, text=True, timeout=60,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let what runs behind ignore it
    )  # fmt: skip


def test_a_file_that_is_not_there(tmp_path):
    done = run("scripts/report.py", tmp_path / "runs", "--table")
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path}/runs/metrics.json: No such file or directory\n"


@pytest.mark.parametrize(("content", "why"), [("{", "is damaged (Expecting"), ("[]", "holds no metrics")])
def test_metrics_that_cannot_be_read(tmp_path, content, why):
    (tmp_path / "metrics.json").write_text(content)
    done = run("scripts/report.py", tmp_path, "--table")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/metrics.json {why}")
    assert done.stderr.count("\n") == 1


def test_a_figure_without_its_caption(tmp_path):
    file, table = tmp_path / "a.arrow", pa.table({"image": [b"x"], "caption": [["a dog"]], "image_id": ["0"]})
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
    words = ("model", "--arrow", file, "--caption", "nobody wrote this", "--out", tmp_path / "figure.svg")
    done = run("scripts/make_readme_figure.py", *words)
    assert done.returncode == 2 and done.stderr == f"error: {file} has no image with the caption 'nobody wrote this'\n"
