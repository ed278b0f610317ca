"""A run's folder, and the checkpoint that it goes on from.

    log_dir/exp_name_seed{seed}/version_{n}/checkpoints/...

`version` names the folder; without it a new run takes the next free number, and one that goes on by itself
(`resume_from=auto`, or torchrun after a process died) the newest run that has begun to train.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip.train.checkpoint import newest_whole, step_files

log = logging.getLogger(__name__)

AUTO = "auto"
CHECKPOINTS = "checkpoints"
JOB_FILE = "job.txt"  # which launch took the folder, so that its restarts find it again
VARIABLE = "LEXLIP_RUN"  # keeps the decision for the processes of a run


def settle(keys: dict) -> tuple[Path, str | None]:
    """The run's folder and the checkpoint to go on from, or None; all processes of a run get the same.

    Raises:
        ConfigError: processes that torchrun started without a way to agree on a free number.
    """
    if (
        keys["version"] is not None
        and keys["resume_from"] != AUTO
        and not (environment.job() or environment.restarted())
    ):
        folder = named_folder(keys, keys["version"])  # nothing to agree on
        _refuse_used(folder, keys)
        return folder, keys["resume_from"]
    try:
        place = environment.settled(VARIABLE, lambda: _decide(keys))
    except LookupError as error:
        raise ConfigError(
            f"version={keys['version']} resume_from={keys['resume_from']}: {error} to agree on a folder through; "
            "start them with scripts/launch.sh, or give a version and a checkpoint's path"
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


def _numbered(keys: dict) -> dict[int, Path]:
    found = (path for path in _parent(keys).glob("version_*") if path.name[8:].isdigit())
    return {int(path.name[8:]): path for path in found}


def _decide(keys: dict) -> dict:
    taken = _taken_by_this_launch(keys)
    folder, resume = taken or _free_folder(keys), keys["resume_from"]
    if resume == AUTO or (not keys["test_only"] and (taken or environment.restarted())):
        newest = newest_whole(folder / CHECKPOINTS)
        # A run that began from a given checkpoint, and has none of its own yet, begins there again.
        resume = str(newest) if newest else None if resume == AUTO else resume
        log.info("%s: %s", folder, f"going on from {newest.name}" if newest else "no checkpoint to go on from")
    else:
        _refuse_used(folder, keys)
    if environment.job() and not (keys["test_only"] or keys["fast_dev_run"]):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB_FILE).write_text(environment.job())
    return {"folder": str(folder), "resume_from": resume}


def _taken_by_this_launch(keys: dict) -> Path | None:
    """Where this launch trained before it was restarted."""
    if not environment.job() or keys["test_only"]:
        return None
    version = keys["version"]
    folders = [named_folder(keys, version)] if version is not None else _numbered(keys).values()
    return next(
        (f for f in folders if (f / JOB_FILE).is_file() and (f / JOB_FILE).read_text() == environment.job()), None
    )


def _free_folder(keys: dict) -> Path:
    if keys["version"] is not None:
        return named_folder(keys, keys["version"])
    numbered = _numbered(keys)
    going_on = keys["resume_from"] == AUTO or environment.restarted()
    begun = [n for n, path in numbered.items() if step_files(path / CHECKPOINTS)] if going_on else []
    return named_folder(keys, max(begun, default=max(numbered, default=-1) + 1))


def _refuse_used(folder: Path, keys: dict) -> None:
    """A run of its own does not write among another's checkpoints."""
    used, resume = folder / CHECKPOINTS, keys["resume_from"]
    inside = resume is not None and Path(resume).resolve().parent == used.resolve()
    if step_files(used) and not (inside or keys["test_only"] or keys["fast_dev_run"]):
        raise ConfigError(
            f"version={keys['version']}: {used} holds an earlier run's checkpoints; resume_from=auto goes on with that "
            "run, another version starts a new one"
        )


def keep_old_log(folder: Path) -> None:
    """Move a former attempt's metrics.csv aside: the logger would begin it anew."""
    log = folder / "metrics.csv"
    if log.is_file():
        taken = len(list(folder.glob("metrics_*.csv")))
        shutil.move(log, folder / f"metrics_{taken}.csv")
