"""Whole runs on the tiny data set, by the command line's entry point as a function, and what they leave behind."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

pytest.importorskip("sacred")

from lexlip.train import main  # noqa: E402  (it needs sacred)

ROOT = Path(__file__).resolve().parents[1]
PHASE1 = ["task_Text_MAE_Contrastive_train", "text_bert", "vit_randaug"]
PHASE2 = ["task_contrastive_train", "text_bert"]
DENSE = ["task_dense_contrastive_train", "text_bert"]
LONG = ["task_long_caption_train", "text_bert"]
EVALUATE = ["task_IRTR_evaluate", "text_bert"]
WHOLE = {"max_steps": 9, "drop_rate": 0.1, "warmup_steps": 2, "flops_warmup": 0.7, "keep_checkpoints": 9}
Refused = main.Refused  # what a run raises that cannot be
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run_phase(data: dict, log_dir: Path, phase: type, named: list[str], /, **changes) -> SimpleNamespace:
    """Run a phase on the tiny data set `data`; gives its result, all its keys and its run directory.

    It leaves the process as it was: random state, precision of products, signal handlers.
    """
    updates = {
        **tiny.MODEL, "data_root": str(data["root"]), "tokenizer": data["tokenizer"], "vocab_size": data["words"],
        "log_dir": str(log_dir), "batch_size": 4, "per_gpu_batchsize": 2, "queue_size": 8, "learning_rate": 1e-2,
        **changes,
    }  # fmt: skip
    precision, state = torch.get_float32_matmul_precision(), torch.get_rng_state()
    handlers = [signal.getsignal(signum) for signum in SIGNALS]
    try:
        done = main.make_experiment(phase.__name__, phase).run(named_configs=named, config_updates=updates)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_rng_state(state)
        assert handlers == [signal.getsignal(signum) for signum in SIGNALS]
    keys = main.plain(dict(done.config))
    version = str(keys["version"] if keys["version"] is not None else 0)
    folder = Path(keys["log_dir"]) / f"{keys['exp_name']}_seed{keys['seed']}"
    folder /= f"version_{version}" if version.isdigit() else version
    return SimpleNamespace(result=done.result, keys=keys, folder=folder)


@contextmanager
def captions_noted(phase: type) -> Iterator[list]:
    """Notes the captions of each training step meanwhile."""
    seen, step = [], phase.training_step

    def training_step(self, batch, index):
        seen.append([(image_id, number) for _, image_id, number in batch["sample"]])
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase, "training_step", training_step)
        yield seen


def command(script: str, named: list[str], keys: dict) -> tuple[list[str], dict[str, str]]:
    """The words `PHASE/run.py with ...` of a run, and the environment that they need."""
    words = [str(ROOT / script), "with", *named]
    words += [f"{key}={value!r}" for key, value in keys.items() if not key.startswith("__")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    return words, {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def names(folder: Path, only: str = "") -> list[str]:
    """The files among a run's checkpoints, or those whose names start so."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(only))


def checkpoint_of(folder: Path, name: str = "last.ckpt") -> dict:
    """What a checkpoint of a run holds."""
    return torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)


def logged(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a run's log that have a value of this name."""
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get(name)]
