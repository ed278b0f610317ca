"""The run directory, and the checkpoint that a run goes on from.

    log_dir/exp_name_seed{seed}/version_{n}/checkpoints/...

`version` names the directory; without it a new run takes the next free number, and one that goes on by itself
(`resume_from=auto`, or torchrun after a process died) the newest run that has begun to train. The run's first process
claims the directory (claim.py).
"""

import logging
import os
from pathlib import Path

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip.train.checkpoint import newest_whole, step_files
from lexlip.train.claim import LOCK, Claim, Taken
from lexlip.train.config import Config

log = logging.getLogger(__name__)

AUTO = "auto"
CHECKPOINTS = "checkpoints"
JOB_FILE = "job.txt"  # which launch took the directory, so that its restarts find it again
VARIABLE = "LEXLIP_RUN"  # keeps the decision for the processes of a run


_claim: Claim | None = None  # of this process's run


def choose(config: Config) -> tuple[Path, str | None]:
    """The run directory and the checkpoint to go on from, or None; all processes of a run get the same.

    Raises:
        ConfigError: processes that torchrun started without a way to agree on a free number, or a directory in which
            another run trains.
    """
    if config.version is not None and config.resume_from != AUTO and not (environment.job() or environment.restarted()):
        choice = _choose(config)  # nothing to agree on
    else:
        try:
            choice = environment.settled(VARIABLE, lambda: _choose(config))
        except LookupError as error:
            raise ConfigError(
                f"version={config.version} resume_from={config.resume_from}: {error}, so they cannot "
                "agree on a run directory; start them with scripts/launch.sh, or give a version and a checkpoint's path"
            ) from error
    return Path(choice["folder"]), choice["resume_from"]


def forget() -> None:
    """The next run of this process decides anew, and other runs may have the directory."""
    global _claim
    os.environ.pop(VARIABLE, None)
    if _claim is not None:
        _claim.release()
    _claim = None


def begin() -> None:
    """From now on the directory is used, whatever becomes of the run."""
    if _claim is not None:
        _claim.begun = True


def give_back() -> None:
    """Leave no directory behind if this run was refused before it began, so that it takes no version number."""
    if _claim is not None:
        _claim.give_back((JOB_FILE, LOCK))


def _parent(config: Config) -> Path:
    return Path(config.log_dir) / f"{config.exp_name}_seed{config.seed}"


def _named(config: Config) -> Path:
    """The directory of the `version`: of its number, or by its own name."""
    name = str(config.version)
    return _parent(config) / (f"version_{name}" if name.isdigit() else name)


def _numbered(config: Config) -> dict[int, Path]:
    paths = (path for path in _parent(config).glob("version_*") if path.name[8:].isdigit())
    return {int(path.name[8:]): path for path in paths}


def _choose(config: Config) -> dict:
    taken = _taken_by_this_launch(config)
    folder, resume = _claimed(config, taken), config.resume_from
    if resume == AUTO or (not config.test_only and (taken or environment.restarted())):
        newest = newest_whole(folder / CHECKPOINTS)
        # A run that began from a given checkpoint, and has none of its own yet, begins there again.
        resume = str(newest) if newest else None if resume == AUTO else resume
        log.info("%s: %s", folder, f"going on from {newest.name}" if newest else "no checkpoint to go on from")
    else:
        _refuse_used(folder, config)
    if environment.job() and not (config.test_only or config.fast_dev_run):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB_FILE).write_text(environment.job())
    return {"folder": str(folder), "resume_from": resume}


def _taken_by_this_launch(config: Config) -> Path | None:
    """Where this launch trained before it was restarted."""
    if not environment.job() or config.test_only:
        return None
    for folder in _numbered(config).values() if config.version is None else [_named(config)]:
        if (folder / JOB_FILE).is_file() and (folder / JOB_FILE).read_text() == environment.job():
            return folder
    return None


def _free(config: Config) -> Path:
    if config.version is not None:
        return _named(config)
    numbered = _numbered(config)
    going_on = config.resume_from == AUTO or environment.restarted()
    begun = [n for n, path in numbered.items() if step_files(path / CHECKPOINTS)] if going_on else []
    return _parent(config) / f"version_{max(begun, default=max(numbered, default=-1) + 1)}"


def _claimed(config: Config, taken: Path | None) -> Path:
    """The directory that this launch has taken, or a free one, claimed for this run by its first process."""
    global _claim
    while True:
        folder = taken or _free(config)
        if config.fast_dev_run or not environment.first_rank() or (_claim and _claim.folder == folder):
            return folder  # it writes nothing, another process claims it, or this one did
        try:
            _claim, earlier = Claim(folder, alone=not config.test_only), _claim
        except Taken as error:
            if config.version is None and not step_files(folder / CHECKPOINTS):
                continue  # a run that started at the same time took the number; there is a next one
            raise ConfigError(
                f"version={config.version}: another run trains in {folder} ({error}); wait for its end, stop it, or "
                "give another version"
            ) from None
        if earlier is not None:
            earlier.release()
        return folder


def _refuse_used(folder: Path, config: Config) -> None:
    """A run of its own does not write among another's checkpoints."""
    used, resume = folder / CHECKPOINTS, config.resume_from
    inside = resume is not None and Path(resume).resolve().parent == used.resolve()
    if step_files(used) and not (inside or config.test_only or config.fast_dev_run):
        raise ConfigError(
            f"version={config.version}: {used} holds an earlier run's checkpoints; resume_from=auto goes on with that "
            "run, another version starts a new one"
        )
