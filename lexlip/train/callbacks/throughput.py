"""How fast a training goes, and whether it waits for its data."""

import logging
import time
from typing import Any

import pytorch_lightning as pl

from lexlip_data.loading.batch import Batch

log = logging.getLogger(__name__)

HINT_RATIO = 0.2  # of the time; a loader that keeps up waits for the model, not the other way round
HINT_STEPS = 50


class Throughput(pl.Callback):
    """Logs `train/pairs_per_second` of all processes and `train/data_wait_ratio`, the time without a batch.

    Validation and the writing of checkpoints count as neither.
    """

    def __init__(self, every: int, workers: int):
        self.every = every  # steps between two values
        self.workers = workers  # loader processes, for the hint to raise them
        self.steps, self.pairs, self.waited, self.worked = 0, 0, 0.0, 0.0
        self.mark: float | None = None  # when the last batch was done with
        self.long_waits, self.hinted = 0, False
        self.latest: dict[str, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        now = time.perf_counter()
        self.waited += now - (self.mark or now)
        self.mark = now
        self.pairs += len(batch["image_id"]) * trainer.world_size

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.worked += now - (self.mark or now)
        self.steps += 1
        if self.steps == self.every:
            total = self.waited + self.worked
            ratio = self.waited / total
            self.latest = {"train/pairs_per_second": self.pairs / total, "train/data_wait_ratio": ratio}
            self.long_waits = self.long_waits + self.every if ratio > HINT_RATIO else 0
            if self.long_waits >= HINT_STEPS and not self.hinted and trainer.is_global_zero:
                self.hinted = True
                log.warning(
                    "%.0f%% of the time the training waits for data: the loader is the limit. Raise num_workers (%d "
                    "now, per process), store smaller images, or take train_transform_keys='[\"vit\"]'",
                    100 * ratio, self.workers,
                )  # fmt: skip
            self.steps, self.pairs, self.waited, self.worked = 0, 0, 0.0, 0.0
        module.log_dict(self.latest)
        self.mark = now

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self.mark = None

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.mark = None
