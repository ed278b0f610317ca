"""A loader process that dies is named, with what most likely happened and what to do."""

import re
import signal
import traceback
from types import SimpleNamespace

import pytest

from lexlip_data.errors import memory_kills
from lexlip_data.loading import faults
from lexlip_data.loading.faults import explain_loader_failure

# In a process of its own: torch raises the error from a signal handler, wherever the process happens to be.
SCRIPT = """
import os, sys
from torch.utils.data import DataLoader, Dataset
from lexlip_data.loading.faults import explain_loader_failure

class Dying(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        if i == 2:
            print("worker", os.getpid(), flush=True)
            os.kill(os.getpid(), int(sys.argv[1]))
        return i

def read():
    try:
        list(DataLoader(Dying(), num_workers=1))
    except Exception as error:
        return explain_loader_failure(error)

try:
    explained = read()
except RuntimeError as late:  # between the catch and the call
    explained = explain_loader_failure(late)
print(type(explained).__name__, explained, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("signum", "message"),
    [
        (signal.SIGKILL, r"was killed \(SIGKILL\), most likely by the system's memory killer.*fewer num_workers"),
        (signal.SIGBUS, r"was ended by a bus error \(SIGBUS\).*/dev/shm.*cut short"),
    ],
)
def test_a_worker_that_is_killed_is_named(signum, message, python):
    done = python(SCRIPT, int(signum), text=True)
    worker, explained = done.stdout.splitlines()
    assert explained.startswith(f"DataError loader process {worker.removeprefix('worker ')} was")
    assert re.search(message, explained)


def broken_off() -> OSError:
    """What receiving a batch raises when the process that made it is gone."""
    from multiprocessing import resource_sharer

    try:
        resource_sharer._resource_sharer.get_connection(("/nobody/listens/here", 1))
    except OSError as error:
        return error
    raise AssertionError("a connection to nobody")


@pytest.mark.parametrize("pinned", [False, True])
def test_a_worker_that_dies_while_it_hands_over_a_batch(pinned):
    error = broken_off()
    if pinned:  # received by a thread, whose traceback torch puts into the text
        error = ConnectionResetError("Caught ConnectionResetError in pin memory thread\n" + "".join(
            traceback.format_tb(error.__traceback__)
        ))  # fmt: skip
    assert "loader process (of unknown number) was gone without a word" in str(explain_loader_failure(error))

    class Loader:
        _workers = [SimpleNamespace(pid=11, exitcode=-15), SimpleNamespace(pid=12, exitcode=-9)]

        def next(self):
            raise error

    for worker in Loader._workers:
        worker.join = lambda timeout: None
    with pytest.raises(OSError) as raised:
        Loader().next()
    assert "loader process 12 was killed (SIGKILL)" in str(explain_loader_failure(raised.value))
    assert explain_loader_failure(ConnectionResetError("of another connection")) is None


def test_torchs_handler_may_raise_in_the_midst(monkeypatch):
    def raise_once(error, found=[]):  # noqa: B006
        if not found:
            found.append(True)
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
        return iter([error])

    monkeypatch.setattr(faults, "_chain", raise_once)
    assert "loader process 12 was killed" in str(explain_loader_failure(broken_off()))


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
def test_kills_are_counted_where_the_system_counts_them(tmp_path, groups, file):
    (tmp_path / "cgroup").write_text(groups)
    counter = tmp_path / "sys" / file
    counter.parent.mkdir(parents=True)
    counter.write_text("oom 5\noom_kill 3\n")
    assert memory_kills(tmp_path / "cgroup", tmp_path / "sys") == " (kills counted in this control group: 3)"
    counter.unlink()
    assert memory_kills(tmp_path / "cgroup", tmp_path / "sys") == ""
