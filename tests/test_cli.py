"""The `lexlip` command itself: what it lists, what it loads, and how it tells mistakes."""

import os
import subprocess
import sys

import pytest
import torch

from lexlip.cli import main

COMMANDS = {
    "cache", "classify", "encode", "eval-long-text", "eval-mteb", "evaluate", "explain", "export", "export-onnx", "fit",
    "import-lotlip", "import-official", "import-sparse-encoder", "index", "qrels", "search", "serve", "sync",
}  # fmt: skip


def test_help_lists_every_command_and_loads_no_torch():
    """Seconds for everyone who only asks, and for those who search an index without a model."""
    words = [sys.executable, "-X", "importtime", "-m", "lexlip.cli", "--help"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line[4] != " "}
    assert listed - {"COMMAND"} == COMMANDS
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lexlip_data.command" in loaded  # the report is what it is taken for
    heavy = {"torch", "transformers", "timm", "numba", "PIL", "fastapi", "pydantic", "pytorch_lightning", "sacred"}
    assert not heavy & loaded


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and f"lexlip {command}" in capsys.readouterr().out


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("command", ["import-official", "import-lotlip", "export"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys, command):
    trace = tmp_path / "ran"
    torch.save({"state_dict": {"text_transformer.x": Malicious(str(trace))}}, tmp_path / "bad.ckpt")
    assert main([command, str(tmp_path / "bad.ckpt"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "bad.ckpt" in error and "run code" in error and error.startswith("error: ") and error.count("\n") == 1
    assert not trace.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, message", [
    (["encode", "--model", "no/such/x", "--texts", __file__, "--out", "x"], "--model no/such/x: no such folder"),
    (["encode", "--model", __file__, "--texts", __file__, "--out", "x"], "is a file, not a model folder"),
    (["encode", "--model", ".", "--images", __file__, "--out", "x"], "is a file, not a folder"),
    (["encode", "--model", ".", "--texts", ".", "--out", "x"], "is a folder, not a file"),
    (["encode", "--model", ".", "--texts", __file__, "--out", f"{__file__}/x"], "is a file, not a folder"),
    (["search", "--index", ".", "--bag", '{"1": 1}', "-k", "0"], "k=0"),
    (["search", "--index", ".", "--model", "../no", "text"], "--model ../no: no such folder"),
    (["export", "no.ckpt", "x"], "checkpoint no.ckpt: no such file"),
    (["serve", "--index", "nowhere", "--model", "."], "--index nowhere: no such folder"),
])  # fmt: skip
def test_cheap_refusals_come_before_torch(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from lexlip.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'timm'} & set(sys.modules), 'imported'; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "x").exists()
