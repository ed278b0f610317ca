"""Asking a run to stop: Ctrl-C, SIGTERM (a node is taken away), SIGUSR1 (SLURM's warning before the time is up).

In training the run finishes its step, writes a checkpoint and ends. In validation it ends at once, since the checkpoint
was written before; so it does before the first step, and in evaluation.
"""

# Lightning hands on the module that it trains, which is always ours:
# mypy: disable-error-code=override
from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

import pytorch_lightning as pl

from lexlip.launch.exit_status import INTERRUPTED, REQUEUE
from lexlip.train.module import RetrievalModule

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IMPATIENT = 5.0  # seconds after which a second Ctrl-C no longer waits; launchers repeat the first one at once


class Stopped(KeyboardInterrupt):
    """The run was stopped from outside and can go on with `resume_from=auto`; `code` is the exit status."""

    STATUS = "INTERRUPTED"  # sacred's record

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = INTERRUPTED if signum == signal.SIGINT else REQUEUE


class Leave(BaseException):
    """Carries the signal out of the Trainer, whose own handling of KeyboardInterrupt would end the process."""


class Watch(pl.Callback):
    """Turns the signals into a wish to stop, on which the processes agree before each step.

    Outside the steps, while data and weights are loaded, in validation and in evaluation, there is nothing to save
    that is not saved already, and a signal ends the run at once. Use as a context around the whole run; as a callback
    it goes last, so that the checkpoint is written before it leaves.
    """

    def __init__(self) -> None:
        self.signum = 0  # the first that came
        self.came = 0.0
        self.in_steps = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self._install()
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _install(self) -> None:
        if self._before:  # else this is not the main thread, which alone may
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        if self.signum:  # launchers repeat themselves
            if signum == signal.SIGINT and time.monotonic() - self.came > IMPATIENT:
                raise KeyboardInterrupt
            return
        self.signum, self.came = signum, time.monotonic()
        if not self.in_steps:
            raise Leave(signum)
        log.warning("%s: stopping after this step", signal.Signals(signum).name)

    def on_train_start(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self._install()  # over the Trainer's own, which talk to the other processes from inside a handler
        self.in_steps = True

    def on_train_end(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self.in_steps = False
        if self.signum:
            raise Leave(self.signum)

    def on_validation_start(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self._install()
        self.in_steps = False
        if self.signum:
            raise Leave(self.signum)

    def on_validation_end(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self.in_steps = trainer.state.fn == "fit"

    def on_test_start(self, trainer: pl.Trainer, module: RetrievalModule) -> None:
        self._install()

    def on_train_batch_start(self, trainer: pl.Trainer, module: RetrievalModule, *_: Any) -> None:
        module.agreement.wishes["stop"] = bool(self.signum)

    def on_train_batch_end(self, trainer: pl.Trainer, module: RetrievalModule, *_: Any) -> None:
        if module.agreement.stop:
            raise Leave(self.signum or signal.SIGTERM)
