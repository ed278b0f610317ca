"""Asking a run to stop: Ctrl-C, SIGTERM (a node is taken away), SIGUSR1 (SLURM's warning before the time is up).

The run finishes its step, writes a checkpoint and ends. In validation it ends at the next batch, since the checkpoint
was written before.
"""

from __future__ import annotations

import logging
import signal
import threading
import time

import pytorch_lightning as pl

log = logging.getLogger(__name__)

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: not finished, start me again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IMPATIENT = 5.0  # seconds after which a second Ctrl-C no longer waits; launchers repeat the first one at once


class Stopped(KeyboardInterrupt):
    """The run was stopped from outside and can go on with `resume_from=auto`.

    Attributes:
        code: exit status, 130 after Ctrl-C, else `REQUEUE`.
    """

    STATUS = "INTERRUPTED"  # sacred's record

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 130 if signum == signal.SIGINT else REQUEUE


class Leave(BaseException):
    """Carries the signal out of the Trainer, whose own handling of KeyboardInterrupt would end the process."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Watch(pl.Callback):
    """Turns the signals into a wish to stop, on which the processes agree before each step.

    Goes last among the callbacks, so that the checkpoint is written before it leaves.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.asked = 0.0

    def _handle(self, signum: int, frame: object) -> None:
        if signum == signal.SIGINT and self.signum and time.monotonic() - self.asked > IMPATIENT:
            raise KeyboardInterrupt
        if not self.signum:
            self.signum, self.asked = signum, time.monotonic()
            log.warning("%s: stopping after this step", signal.Signals(signum).name)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._handle)  # the Trainer puts back what was there, however it ends

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict, index: int) -> None:
        module.wishes["stop"] = bool(self.signum)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: dict, index: int
    ) -> None:
        if module.agreed["stop"]:
            raise Leave(self.signum or signal.SIGTERM)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if self.signum and trainer.state.fn == "fit":
            raise Leave(self.signum)
