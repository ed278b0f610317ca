"""The real command in 1, 2 and 4 CPU processes, started by torchrun: the same training. Some ten seconds each."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

pytest.importorskip("sacred")
ROOT = Path(__file__).resolve().parents[2]
PHASES = {
    "Phase1": (Phase1Module, ["task_Text_MAE_Contrastive_train", "text_bert", "vit_randaug"]),
    "Phase2": (Phase2Module, ["task_contrastive_train", "text_bert"]),
    "dense": (DenseModule, ["task_dense_contrastive_train", "text_bert"]),
    "long": (Phase1Module, ["task_long_caption_train", "text_bert"]),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]


def start_processes(phase, count, keys, log, **environment):
    """`torchrun PHASE/run.py with ...`; gives the exit status and what was printed."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    words += [str(ROOT / (phase if phase.startswith("Phase") else "Phase1") / "run.py"), "with", *PHASES[phase][1]]
    words += [f"{key}={value!r}" for key, value in keys.items() if not key.startswith("__")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        words, env=environment, cwd=log, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )  # fmt: skip
    return done.returncode, done.stdout[-6000:]


def state_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")


def losses_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(value) for name, value in row.items() if name.endswith("loss") and value} for row in rows]


def largest_difference(one, two):
    return {
        name: float((value.double() - two["state_dict"][name].double()).abs().max())
        for name, value in one["state_dict"].items()
    }


@pytest.mark.parametrize("phase", PHASES)
def test_any_number_of_processes_is_one(start, tmp_path, phase):
    """20 steps at the paper's learning rate. A global batch of 4, so up to 4 processes with a pair each."""
    how = {"max_steps": 20, "learning_rate": 5e-5, "warmup_steps": 0, "log_every": 1, "get_recall_metric": False}
    module, named = PHASES[phase]
    one = start(module, named, version="one", **how)
    folder = one.folder.with_name("one")
    losses, state = losses_of(folder), state_of(folder)
    assert len(losses) == 20
    for count in (2, 4):
        keys = {**one.keys, "version": f"by_{count}", "per_gpu_batchsize": 1}
        code, output = start_processes(phase, count, keys, tmp_path)
        assert code == 0, output
        other = folder.with_name(f"by_{count}")
        for step, (row, same) in enumerate(zip(losses, losses_of(other), strict=True)):
            for name, value in row.items():
                assert same[name] == pytest.approx(value, rel=1e-5), (count, step, name)
        for name, difference in largest_difference(state, state_of(other)).items():
            assert difference < 1e-4, (count, name)
        assert json.loads((other / "sacred" / "1" / "config.json").read_text())["batch_size"] == 4


def test_two_processes_with_broken_pictures_end_together(start, tiny_data, tmp_path):
    """Batches of uneven numbers, some of them empty on one process: no process waits for the other."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data["root"] / "tiny", root / "tiny")
    for number in (0, 3):
        (root / "tiny" / f"train_{number}.png").write_bytes(b"broken")
    how = {"max_steps": 4, "data_root": str(root), "max_bad_share": 0.3, "learning_rate": 5e-5}
    one = start(Phase2Module, PHASES["Phase2"][1], version="one", **how)
    keys = {**one.keys, "version": "two", "per_gpu_batchsize": 1}
    code, output = start_processes("Phase2", 2, keys, tmp_path)
    assert code == 0, output
    folder = one.folder.with_name("two")
    state = state_of(folder)
    assert state["global_step"] == 4
    listed = (folder / "skipped_samples.tsv").read_text().splitlines()
    assert len(listed) == state["skipped"]["total"] > 0


def test_processes_agree_on_a_folder_and_on_what_to_go_on_from(start, tmp_path):
    """Without a version: the first run takes version_0, resume_from=auto finds it and takes it further."""
    how = {"max_steps": 2, "get_recall_metric": False}
    one = start(Phase1Module, PHASES["Phase1"][1], version="one", **how)
    keys = {**one.keys, "version": None, "per_gpu_batchsize": 1}
    for more in ({}, {"max_steps": 4, "resume_from": "auto"}):
        code, output = start_processes("Phase1", 2, {**keys, **more}, tmp_path)
        assert code == 0, output
    folders = sorted(path.name for path in one.folder.parent.iterdir())
    assert folders == ["one", "version_0"]
    assert state_of(one.folder.with_name("version_0"))["global_step"] == 4
