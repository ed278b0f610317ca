"""Real launches of small programs: restarts, exit statuses, signals, two nodes on one machine. A few seconds each."""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lexlip.launch import agent

ROOT = Path(__file__).resolve().parents[2]

# As python -m lexlip.launch does, with a program of the test's own.
LAUNCH = """
import os, sys
from lexlip.launch import launcher, network, settings
settings = settings.Settings(command=(sys.argv[1],), **eval(sys.argv[2]))
os._exit(launcher.run(settings, network.meet(settings, {})))
"""

START = """
import os, signal, sys, time
rank, round_ = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
line = f"process {rank} round {round_} {os.environ['LEXLIP_JOB']}\\n"
os.write(1, line.encode())  # in one piece, beside the other process's
open(f"started{rank}", "w")
def wait_for(name):
    while not os.path.exists(name): time.sleep(0.01)
"""


class Launches:
    """Launchers of one test; those still alive at its end are killed."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, program, **settings):
        script = self.folder / "program.py"
        script.write_text(START + program)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "FATAL"}
        self.running.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(script), repr(settings)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder,
            )
        )  # fmt: skip
        return self.running[-1]

    def finish(self, launcher, seconds=120):
        """Exit status, lines of the processes, what the launcher said."""
        out, err = launcher.communicate(timeout=seconds)
        return launcher.returncode, sorted(line for line in out.splitlines() if line.startswith("process")), err


@pytest.fixture
def launches(tmp_path):
    launches = Launches(tmp_path)
    yield launches
    for launcher in launches.running:
        if launcher.poll() is None:
            launcher.kill()
            launcher.wait()  # its processes, which may still hold the pipes, end by themselves


def wait_for(path, seconds=90):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seen(lines):
    """(process, round) pairs, and the jobs they belong to."""
    words = [line.split() for line in lines]
    return [(int(word[1]), int(word[3])) for word in words], {word[4] for word in words}


def test_all_start_again_when_one_is_killed(launches):
    program = """
if round_ == 0:
    wait_for("started0")
    if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""
    code, lines, said = launches.finish(launches.start(program, processes=2))
    pairs, jobs = seen(lines)
    assert code == 0 and pairs == [(0, 0), (0, 1), (1, 0), (1, 1)] and len(jobs) == 1
    assert "process 1 (pid" in said and "killed by SIGKILL" in said and "memory" in said and "3 such restarts" in said
    assert "process 0 (pid" not in said  # torch ended it; it is not the one to look at


def test_restarts_are_used_up(launches):
    code, lines, said = launches.finish(launches.start("sys.exit(5)", max_restarts=1))
    assert code == 1 and seen(lines)[0] == [(0, 0), (0, 1)]
    assert "exit status 5" in said and "MAX_RESTARTS=1" in said and "resume_from=auto" in said


@pytest.mark.parametrize("status", agent.FINAL)
def test_some_exit_statuses_are_final(launches, status):
    program = f"if rank == 0: sys.exit({status})\ntime.sleep(60)"
    code, lines, _ = launches.finish(launches.start(program, processes=2))
    assert code == status and [turn for _, turn in seen(lines)[0]] == [0] * len(lines)


LEAVE = """
def leave(signum, frame):
    time.sleep(2)
    open(f"saved{rank}", "w").write(str(signum))
    sys.exit(130 if signum == signal.SIGINT else 75)
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, leave)
open(f"ready{rank}", "w")
time.sleep(60)
"""


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_processes_which_leave_in_their_own_time(launches, signum, status, tmp_path):
    launcher = launches.start(LEAVE, processes=2)
    for rank in range(2):
        wait_for(tmp_path / f"ready{rank}")
    launcher.send_signal(signum)
    code, lines, said = launches.finish(launcher)
    assert code == status and len(lines) == 2  # no restart
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [str(int(signum))] * 2
    assert signum.name in said


def test_processes_that_do_not_leave_are_killed(launches, tmp_path):
    program = "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\nopen('ready', 'w')\ntime.sleep(60)"
    launcher = launches.start(program, shutdown_timeout=2)
    wait_for(tmp_path / "ready")
    started = time.monotonic()
    launcher.send_signal(signal.SIGUSR1)
    code, _, said = launches.finish(launcher)
    assert code == 75 and "did not leave within 2 s" in said and time.monotonic() - started < 30


def two_nodes(launches, program, **settings):
    port = free_port()
    common = {"min_nodes": 2, "max_nodes": 2, "master": "127.0.0.1", "port": port, **settings}
    return [launches.start(program, node_rank=node, **common) for node in range(2)]


def test_nodes_count_the_same_restarts(launches):
    # The others of a real run sit in a collective; here they sleep until their own agent restarts them.
    program = """
if round_ < 2:
    wait_for("started0")
    if rank == 1: time.sleep(1); sys.exit(9)
    time.sleep(60)
"""
    ended = [launches.finish(node) for node in two_nodes(launches, program, join_timeout=30)]
    assert [code for code, _, _ in ended] == [0, 0]
    pairs, jobs = seen(ended[0][1] + ended[1][1])
    assert sorted(pairs) == [(rank, turn) for rank in range(2) for turn in range(3)] and len(jobs) == 1


def test_a_node_says_that_node_0_is_gone(launches, tmp_path):
    first, second = two_nodes(launches, "open(f'ready{rank}', 'w')\ntime.sleep(60)", join_timeout=10)
    for rank in range(2):
        wait_for(tmp_path / f"ready{rank}")
    first.kill()
    code, _, said = launches.finish(second)
    assert code == 1 and "lost contact with node 0 at 127.0.0.1:" in said and "resume_from=auto" in said


def test_a_node_gives_up_when_node_0_does_not_answer(launches, tmp_path):
    program = "open(f'pid{rank}', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    first, second = two_nodes(launches, program, join_timeout=5)
    for rank in range(2):
        wait_for(tmp_path / f"pid{rank}")
    first.send_signal(signal.SIGSTOP)  # as with a cut link, questions stay without answer
    code, _, said = launches.finish(second)
    first.send_signal(signal.SIGCONT)
    assert code == 1 and "lost contact with node 0 at 127.0.0.1:" in said


def test_a_node_still_leaving_when_node_0_has_left_ends_as_its_processes_do(launches, tmp_path):
    program = """
def leave(*_):
    open("leave", "w")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open(f"ready{rank}", "w")
wait_for("leave")
time.sleep(3)
sys.exit(75)
"""
    first, second = two_nodes(launches, program)
    for rank in range(2):
        wait_for(tmp_path / f"ready{rank}")
    first.send_signal(signal.SIGTERM)
    assert launches.finish(first)[0] == 75
    code, _, said = launches.finish(second)
    assert code == 75 and "lost contact" not in said


def test_node_0_says_that_too_few_nodes_came(launches):
    node = launches.start("", min_nodes=2, max_nodes=2, master="127.0.0.1", port=free_port(), join_timeout=3)
    code, lines, said = launches.finish(node)
    assert code == 1 and not lines and "fewer than 2 nodes met at 127.0.0.1:" in said and "JOIN_TIMEOUT=3" in said


def test_a_signal_ends_the_wait_for_other_nodes(launches):
    node = launches.start("", min_nodes=2, max_nodes=2, master="127.0.0.1", port=free_port(), join_timeout=60)
    time.sleep(6)  # imports, then the wait
    node.send_signal(signal.SIGTERM)
    code, _, _ = launches.finish(node, 20)
    assert code in (agent.REQUEUE, -signal.SIGTERM)  # the latter only if it was still importing


# As processes of a real run agree on stopping, all of them leave when one is asked to.
ELASTIC = """
def leave(*_):
    open(f"left{round_}", "w")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open(f"world{os.environ['WORLD_SIZE']} round{round_} process{rank}", "w")
while round_ < 2 and not os.path.exists(f"left{round_}"): time.sleep(0.05)
sys.exit(0 if round_ == 2 else 75)
"""


@pytest.mark.slow
def test_elastic_nodes_go_on_when_one_leaves_and_when_one_comes(launches, tmp_path):
    common = {"min_nodes": 1, "max_nodes": 2, "master": "127.0.0.1", "port": free_port(), "last_call": 10}
    first = launches.start(ELASTIC, node_rank=0, **common)
    second = launches.start(ELASTIC, node_rank=1, **common)
    for rank in range(2):
        wait_for(tmp_path / f"world2 round0 process{rank}")
    second.send_signal(signal.SIGTERM)
    assert launches.finish(second)[0] == 75
    wait_for(tmp_path / "world1 round1 process0", 60)
    third = launches.start(ELASTIC, node_rank=1, **common)
    for rank in range(2):
        wait_for(tmp_path / f"world2 round2 process{rank}")
    ended = [launches.finish(node) for node in (first, third)]
    assert [code for code, _, _ in ended] == [0, 0]
    assert "another node leaves" in ended[0][2] and "restarts are left" not in ended[0][2]


def test_of_torchs_own_methods_only_documented_ones_are_used():
    documented = {"_rendezvous", "_start_workers", "_monitor_workers", "_restart_workers", "_exit_barrier", "_shutdown"}
    files = Path(agent.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and re.match("_[a-z]", node.name)}
    theirs = {name for name in own if hasattr(agent.LocalElasticAgent, name)}
    assert theirs == documented - {"_restart_workers"}  # all there, or torch would not call them
    private = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    assert {node.attr for node in private} - own == {"_restart_workers", "_exit"}  # the latter is of os
    assert not [node.attr for node in private if isinstance(node.ctx, ast.Store)]
