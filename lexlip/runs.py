"""A run's folder, and the checkpoint that it goes on from.

    log_dir/exp_name_seed{seed}/version_{n}/checkpoints/...

`version` names the folder; without it a new run takes the next free number, and one that goes on by itself
(`resume_from=auto`, or torchrun after a process died) the newest run that has begun to train.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lexlip import launch
from lexlip.config import ConfigError
from lexlip.saving import newest_whole

AUTO = "auto"
CHECKPOINTS = "checkpoints"
VARIABLE = "LEXLIP_RUN"  # keeps the decision for the processes of a run


def settle(keys: dict) -> tuple[Path, str | None]:
    """The run's folder and the checkpoint to go on from, or None; all processes of a run get the same.

    Raises:
        ConfigError: processes that torchrun started without a way to agree on a free number.
    """
    going_on = not keys["test_only"] and (keys["resume_from"] == AUTO or launch.restarted())
    version = keys["version"]
    if version is not None and not going_on:
        return named_folder(keys, version), keys["resume_from"]
    try:
        place = launch.settled(VARIABLE, lambda: _decide(keys, going_on))
    except LookupError as error:
        raise ConfigError(
            f"version={version} resume_from={keys['resume_from']}: {error} to agree on a folder through; start them "
            "with scripts/launch.sh, or give a version and a checkpoint's path"
        ) from error
    return Path(place["folder"]), place["resume_from"]


def forget() -> None:
    """The next run of this process decides anew."""
    os.environ.pop(VARIABLE, None)


def named_folder(keys: dict, version: int | str) -> Path:
    """The folder of a version: of its number, or by its own name."""
    name = f"version_{version}" if str(version).isdigit() else str(version)
    return _parent(keys) / name


def _parent(keys: dict) -> Path:
    return Path(keys["log_dir"]) / f"{keys['exp_name']}_seed{keys['seed']}"


def _numbers(parent: Path, holding: str = "") -> list[int]:
    return [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit() and (p / holding).is_dir()]


def _decide(keys: dict, going_on: bool) -> dict:
    parent, version = _parent(keys), keys["version"]
    if version is None:
        begun = _numbers(parent, CHECKPOINTS) if going_on else []
        version = max(begun, default=max(_numbers(parent), default=-1) + 1)
    folder = named_folder(keys, version)
    resume = keys["resume_from"]
    if going_on:
        newest = newest_whole(folder / CHECKPOINTS)
        # After a restart a run that began from a given checkpoint, and has none of its own yet, begins there again.
        resume = str(newest) if newest else None if resume == AUTO else resume
    return {"folder": str(folder), "resume_from": resume}


def keep_old_log(folder: Path) -> None:
    """Move a former attempt's metrics.csv aside: the logger would begin it anew."""
    log = folder / "metrics.csv"
    if log.is_file():
        taken = len(list(folder.glob("metrics_*.csv")))
        shutil.move(log, folder / f"metrics_{taken}.csv")
