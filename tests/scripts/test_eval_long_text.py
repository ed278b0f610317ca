"""The script hands the command what the variables say."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, *words, **variables):
    (tmp_path / "scripts").mkdir(exist_ok=True)
    for name in ("eval_long_text.sh", "common.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(stub), **variables}
    command = ["bash", str(tmp_path / "scripts" / "eval_long_text.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_variables_become_options(tmp_path):
    sets = {"SHARE4V": "sa1b", "SHARE4V_ANNO": "a.json", "SHARE4V_VAL_NUM": "2,4", "URBAN1K": "u"}
    done = run(tmp_path, "--allow-missing", MODEL="m", **sets)
    assert done.returncode == 0, done.stderr
    wanted = "--model m --share4v sa1b --share4v-anno a.json --share4v-val-num 2,4 --urban1k u --allow-missing"
    assert done.stdout.strip().endswith(f"eval-long-text {wanted}")


def test_no_model_is_an_error(tmp_path):
    done = run(tmp_path, URBAN1K="u")
    assert done.returncode != 0 and "MODEL: set it to a model folder" in done.stderr
