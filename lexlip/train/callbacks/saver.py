"""Checkpoints of a run: when they are written, which are kept, which one to go on from.

    checkpoints/step_00001200.ckpt   the last `keep_checkpoints` of them
    checkpoints/last.ckpt            the newest
    checkpoints/best.ckpt            best on val; best.json says how good

last and best are hard links: a second name, no second file. A checkpoint is written under a temporary name, flushed
and renamed, and the oldest one goes only when the newest is whole; so a crash at any moment leaves a whole one.
A full disk does not end the training: the failure is logged, the older checkpoints stay, the next one is tried in time.
"""

# Lightning hands on the module that it trains, which is always ours:
# mypy: disable-error-code=override
import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lexlip.train.checkpoint import WholeFiles, clear_for, step_file, step_files
from lexlip.train.config import Config
from lexlip.train.module import RetrievalModule
from lexlip.utils.files import link_whole, write_json

log = logging.getLogger(__name__)


class Saver(pl.Callback):
    """Writes checkpoints: before each validation, at the end, every so many minutes or steps, when the run stops."""

    def __init__(self, config: Config, folder: Path, files: WholeFiles, validated: bool):
        self.config, self.folder, self.files = config, folder, files  # the Trainer writes with `files`
        monitor, self.sign = (f"val/{config.select_by}", 1) if config.get_recall_metric else ("val/loss", -1)
        self.monitor = monitor if validated else ""  # what the best checkpoint is picked by, if anything
        self.written = time.monotonic()
        self.saved_step = -1  # the same on every process, since all of them enter the writing or none
        self.validation_due = False  # after the step that the checkpoint is of
        self.best: float | None = None
        if (folder / "best.ckpt").is_file():
            with suppress(OSError, ValueError, KeyError, TypeError):  # no note, or one of another metric
                self.best = self.sign * float(json.loads((folder / "best.json").read_text())[self.monitor])

    def on_train_start(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self.written = time.monotonic()
        if trainer.is_global_zero:
            clear_for(trainer.global_step, self.folder)

    def on_train_batch_start(self, trainer: pl.Trainer, module: RetrievalModule, *_: Any) -> None:
        minutes = self.config.checkpoint_minutes
        module.agreement.wishes["save"] = bool(minutes) and time.monotonic() - self.written >= 60 * minutes

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: RetrievalModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step, every = trainer.global_step, self.config.checkpoint_steps
        by_steps = every is not None and step % every == 0 and step > self.saved_step
        ends = step >= trainer.max_steps or module.agreement.stop
        self.validation_due = validation_follows(trainer, module, index)
        if by_steps or ends or module.agreement.save or self.validation_due:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: RetrievalModule, checkpoint: dict) -> None:
        checkpoint["validation_due"] = self.validation_due

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint of this step; called by all processes."""
        path = step_file(self.folder, trainer.global_step)
        started, self.saved_step = time.monotonic(), trainer.global_step
        trainer.save_checkpoint(path, weights_only=False)
        self.written = time.monotonic()
        if not trainer.is_global_zero:
            return
        if self.files.error is not None:
            log.error(
                "%s could not be written (%s); the training goes on, the older checkpoints are untouched. Make room, "
                "or the work since the last one is lost if the run ends",
                path, self.files.error,
            )  # fmt: skip
            return
        size = path.stat().st_size / 2**20
        try:
            link_whole(path, self.folder / "last.ckpt")
            older = [step for step in step_files(self.folder) if step < trainer.global_step]
            for old in older[: max(0, len(older) + 1 - self.config.keep_checkpoints)]:
                step_file(self.folder, old).unlink(missing_ok=True)
        except OSError as error:
            log.error("%s was written, but %s could not be moved on (%s)", path, self.folder / "last.ckpt", error)
        log.info("checkpoint %s, %.0f MiB in %.1f s", path, size, time.monotonic() - started)

    def on_validation_end(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if not trainer.is_global_zero or score is None:
            return
        step = module.step_now
        value, path = self.sign * float(score), step_file(self.folder, step)
        if self.best is not None and not value > self.best or value != value:
            return
        if not path.is_file():
            log.error("step %d is the best so far, but its checkpoint %s is not there", step, path)
            return
        try:  # the note first: it needs room on the disk, the link does not
            write_json({self.monitor: float(score), "step": step}, self.folder / "best.json")
            link_whole(path, self.folder / "best.ckpt")
        except OSError as error:
            log.error("%s could not be written (%s)", self.folder / "best.ckpt", error)
        else:
            self.best = value


def validation_follows(trainer: pl.Trainer, module: RetrievalModule, index: int) -> bool:
    """Whether a validation comes right after this batch, or the epoch ends with it."""
    if trainer.is_last_batch:
        return True
    every = trainer.val_check_batch
    seen = module.batches_seen if trainer.check_val_every_n_epoch is None else index + 1
    return trainer.enable_validation and every not in (None, float("inf")) and seen % int(every) == 0
