"""The stages of a fit: the dense reference, the lexicon, the model folder, its recall. The cache comes before.

Each stage leaves its result in the work folder, and a run that was interrupted goes on with the stage that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
CUTS = [64, 32, 16, 8]  # terms of a vector, in the evaluation


def fit_heads(
    features: Path, work: Path, out: Path, *, seed: int = 0, embed_towers: bool = False, storage: Storage = "full",
    overrides: Mapping[str, object] = {},
) -> tuple[FrozenLexLIP, dict]:  # fmt: skip
    """Train on a cache and write the model folder.

    Args:
        work: where the runs go.
        out: the model folder.
        overrides: config keys that win over those of the size of the data.

    Returns:
        The model, and {"dense": metrics, "lexicon": metrics} on the val split; {} where there is none.
    """
    store = FeatureStore(features)
    settings = settings_for(len(store.split("train").image_ids))
    dense = train_heads("dense", features, work, {**keys_of(settings, "dense"), **overrides, "seed": seed})
    lexicon = train_heads(
        "lexicon", features, work, {**keys_of(settings, "lexicon"), **overrides, "seed": seed, "teacher": str(dense)}
    )
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
    folder = work / f"{head}_seed{config.seed}" / VERSION / "checkpoints"
    done = folder / f"step_{config.max_steps:08d}.ckpt"
    if not done.exists():
        try:
            run(config, TASKS[head][1])
        finally:
            run_dir.forget()  # else the next stage would go on in the directory of this one
    return done
