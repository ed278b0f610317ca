"""The stages of a fit: the dense reference, the lexicon, the model folder, its recall. The cache comes before.

Each stage leaves its result in the work folder, and a run that was interrupted goes on with the stage that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lexlip.convert.frozen import export_frozen, read_heads
from lexlip.features.store import FeatureStore
from lexlip.fit.evaluate import evaluated
from lexlip.fit.settings import keys_of, settings_for
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.towers.packed import Storage
from lexlip.train import run_dir
from lexlip.train.config import Config, base, named
from lexlip.train.frozen import FrozenDenseModule, FrozenModule
from lexlip.train.main import run

VERSION = "fit"
TASKS = {
    "dense": ("task_frozen_dense_train", FrozenDenseModule),
    "lexicon": ("task_frozen_lexicon_train", FrozenModule),
}
CPU = torch.device("cpu")
CUTS = [64, 32, 16, 8]  # terms of a vector, in the evaluation


def plans(images: int, seed: int = 0, overrides: Mapping[str, object] = {}) -> dict[str, dict[str, Any]]:
    """The config keys of the dense reference's and the lexicon's training on so many images.

    Raises:
        ConfigError: as `settings_for`.
    """
    settings = settings_for(images)
    return {head: {**keys_of(settings, head), **overrides, "seed": seed} for head in TASKS}


def last_checkpoint(head: str, work: Path, seed: int, steps: int) -> Path:
    """Where the training of "dense" or "lexicon" ends; it is done where this file is."""
    return work / f"{head}_seed{seed}" / VERSION / "checkpoints" / f"step_{steps:08d}.ckpt"


def fit_heads(
    features: Path, work: Path, out: Path, *, seed: int = 0, embed_towers: bool = False, storage: Storage = "full",
    overrides: Mapping[str, object] = {}, device: torch.device = CPU,
) -> tuple[FrozenLexLIP, dict]:  # fmt: skip
    """Train on a cache and write the model folder.

    Args:
        work: where the runs go.
        out: the model folder.
        overrides: config keys that win over those of the size of the data.
        device: where the training goes, if it is a GPU of CUDA; else to the CPU.

    Returns:
        The model, and {"dense": metrics, "lexicon": metrics} on the val split; {} where there is none.
    """
    store = FeatureStore(features)
    keys = plans(len(store.split("train").image_ids), seed, overrides)
    machine = {"num_gpus": int(device.type == "cuda")}
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which one, a config does not say
    dense = train_heads("dense", features, work, {**keys["dense"], **machine})
    lexicon = train_heads("lexicon", features, work, {**keys["lexicon"], **machine, "teacher": str(dense)})
    model = export_frozen(lexicon, out, features, embed_towers, storage)
    metrics = {}
    if "val" in store.splits:
        split = store.split("val")
        metrics["dense"] = evaluated(read_heads(dense, store), split, "dense", [])
        metrics["lexicon"] = evaluated(model, split, "lexicon", CUTS)
    return model, metrics


def _config(head: str, features: Path, work: Path, keys: Mapping[str, object]) -> Config:
    values = {
        **base(), **named()[TASKS[head][0]], "features": str(features), "log_dir": str(work), "version": VERSION,
        "exp_name": head, "num_gpus": 0, **keys,
    }  # fmt: skip
    if head == "dense":
        values |= {key: base()[key] for key in ("train_top_k", "head_text", "activation")}
    return Config.checked({key: value for key, value in values.items() if key in base()})


def train_heads(head: str, features: Path, work: Path, keys: Mapping[str, object]) -> Path:
    """Train head "dense" or "lexicon" on a cache unless it is done; gives the last checkpoint.

    Args:
        work: where the run goes, or goes on.
        keys: of the config.
    """
    config = _config(head, features, work, {**keys, "resume_from": "auto"})
    assert config.max_steps is not None
    done = last_checkpoint(head, work, config.seed, config.max_steps)
    if not done.exists():
        try:
            run(config, TASKS[head][1])
        finally:
            run_dir.forget()  # else the next stage would go on in the directory of this one
    return done
