"""The real command in 1, 2 and 4 CPU processes under torchrun: the same training. Some ten seconds each."""

import json
import shutil
import subprocess
import sys

import pytest
import torch.distributed as dist
from runs import DENSE, LONG, PHASE1, PHASE2, checkpoint_of, command, logged

from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {
    "Phase1": (Phase1Module, PHASE1), "Phase2": (Phase2Module, PHASE2), "dense": (DenseModule, DENSE),
    "long": (Phase1Module, LONG),
}  # fmt: skip
# torchrun as a library: it forks processes that have imported everything, which takes most of a short run's time.
TORCHRUN = """
import json, os, runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
import lexlip.train.main, Phase1.module, Phase2.module

def run(*words):
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for number, line in enumerate(sys.stdin):
    count, words = json.loads(line)
    config = LaunchConfig(1, 1, count, run_id=str(number), max_restarts=0, monitor_interval=0.1, start_method="fork",
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    try:
        elastic_launch(config, run)(*words)
        print("done", file=answers, flush=True)
    except Exception as error:
        print(f"failed: {error!r}", file=answers, flush=True)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory):
    """Runs a phase's command in so many processes of torchrun; fails with their output if one of them does."""
    output = tmp_path_factory.mktemp("torchrun") / "output.txt"
    with output.open("w") as file:
        environment = command("", [], {})[1]
        torchrun = subprocess.Popen(
            [sys.executable, "-c", TORCHRUN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=file, text=True,
        )  # fmt: skip

    def run(phase: str, count: int, keys: dict) -> None:
        print(json.dumps([count, words_of(phase, keys)[0]]), file=torchrun.stdin, flush=True)
        answer = torchrun.stdout.readline()
        assert answer == "done\n", answer + output.read_text()[-6000:]

    yield run
    torchrun.stdin.close()
    assert torchrun.wait(120) == 0


def words_of(phase, keys):
    return command(f"{phase if phase.startswith('Phase') else 'Phase1'}/run.py", PHASES[phase][1], keys)


def losses_of(folder):
    rows = logged(folder, "train/loss")
    return [{name: float(value) for name, value in row.items() if name.endswith("loss") and value} for row in rows]


def largest_difference(one, two):
    return {
        name: float((value.double() - two["state_dict"][name].double()).abs().max())
        for name, value in one["state_dict"].items()
    }


@pytest.mark.parametrize("phase", PHASES)
def test_any_number_of_processes_is_one(start, in_processes, phase):
    """20 steps at the paper's learning rate. A global batch of 4, so up to 4 processes with a pair each."""
    how = {"max_steps": 20, "learning_rate": 5e-5, "warmup_steps": 0, "log_every": 1, "get_recall_metric": False}
    module, named = PHASES[phase]
    one = start(module, named, version="one", **how)
    losses, state = losses_of(one.folder), checkpoint_of(one.folder)
    assert len(losses) == 20
    for count in (2, 4):
        in_processes(phase, count, {**one.keys, "version": f"by_{count}", "per_gpu_batchsize": 1})
        other = one.folder.with_name(f"by_{count}")
        for step, (row, same) in enumerate(zip(losses, losses_of(other), strict=True)):
            for name, value in row.items():
                assert same[name] == pytest.approx(value, rel=1e-5), (count, step, name)
        for name, difference in largest_difference(state, checkpoint_of(other)).items():
            assert difference < 1e-4, (count, name)
        assert json.loads((other / "sacred" / "1" / "config.json").read_text())["batch_size"] == 4


def test_two_processes_with_broken_images_end_together(start, in_processes, tiny_data, tmp_path):
    """Batches of uneven numbers, some of them empty on one process: no process waits for the other."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data["root"] / "tiny", root / "tiny")
    for number in (0, 3):
        (root / "tiny" / f"train_{number}.png").write_bytes(b"broken")
    how = {"max_steps": 4, "data_root": str(root), "max_bad_share": 0.3, "learning_rate": 5e-5}
    one = start(Phase2Module, PHASE2, version="one", **how)
    in_processes("Phase2", 2, {**one.keys, "version": "two", "per_gpu_batchsize": 1})
    folder = one.folder.with_name("two")
    state = checkpoint_of(folder)
    assert state["global_step"] == 4
    listed = (folder / "skipped_samples.tsv").read_text().splitlines()
    assert len(listed) == state["skipped"]["total"] > 0


def test_processes_agree_on_a_folder_and_on_what_to_go_on_from(start, in_processes, tmp_path):
    """Without a version the first run, by the command torchrun, takes version_0; resume_from=auto takes it further."""
    one = start(Phase1Module, PHASE1, version="one", max_steps=2, get_recall_metric=False)
    keys = {**one.keys, "version": None, "per_gpu_batchsize": 1}
    words, environment = words_of("Phase1", keys)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    in_processes("Phase1", 2, {**keys, "max_steps": 4, "resume_from": "auto"})
    folders = sorted(path.name for path in one.folder.parent.iterdir())
    assert folders == ["one", "version_0"]
    assert checkpoint_of(one.folder.with_name("version_0"))["global_step"] == 4
