"""A loader process that dies is named, with what most likely happened and what to do."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lexlip_data import faults
from lexlip_data.faults import explain_loader_failure

# In a process of its own: torch raises the error from a signal handler, wherever the process happens to be.
SCRIPT = """
import os, sys
from torch.utils.data import DataLoader, Dataset
from lexlip_data.faults import explain_loader_failure

class Dying(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        if i == 2:
            print("worker", os.getpid(), flush=True)
            os.kill(os.getpid(), int(sys.argv[1]))
        return i

try:
    list(DataLoader(Dying(), num_workers=1))
except RuntimeError as error:
    print(type(explain_loader_failure(error)).__name__, explain_loader_failure(error))
"""


@pytest.mark.parametrize(
    ("signum", "message"),
    [
        (signal.SIGKILL, r"was killed \(SIGKILL\), most likely by the system's memory killer.*fewer num_workers"),
        (signal.SIGBUS, r"was ended by a bus error \(SIGBUS\).*/dev/shm.*cut short"),
    ],
)
def test_a_worker_that_is_killed_is_named(signum, message):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "datasets")}
    command = [sys.executable, "-c", SCRIPT, str(int(signum))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    worker, explained = done.stdout.splitlines()
    assert explained.startswith(f"DataError loader process {worker.removeprefix('worker ')} was")
    assert re.search(message, explained)


def test_an_ordinary_error_is_left_alone():
    assert explain_loader_failure(RuntimeError("Caught ValueError in DataLoader worker process 0.")) is None


def test_a_worker_without_a_signal():
    error = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    assert "loader process 12, 13 was gone without a word" in str(explain_loader_failure(error))


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/slice/job\n", "slice/job/memory.events"),
        ("4:cpu:/x\n3:memory:/box\n0::/\n", "memory/box/memory.oom_control"),
        ("0::/not/visible/here\n", "memory.events"),
    ],
)
def test_kills_are_counted_where_the_system_counts_them(tmp_path, monkeypatch, groups, file):
    (tmp_path / "cgroup").write_text(groups)
    counter = tmp_path / "sys" / file
    counter.parent.mkdir(parents=True)
    counter.write_text("oom 5\noom_kill 3\n")
    find = faults._counter_files
    monkeypatch.setattr(faults, "_counter_files", lambda: find(tmp_path / "cgroup", tmp_path / "sys"))
    assert faults.memory_kills() == " (kills counted in this control group: 3)"
    counter.unlink()
    assert faults.memory_kills() == ""
