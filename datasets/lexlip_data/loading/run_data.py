"""What the data of any run has: its processes, and the one training sampler that they share."""

from __future__ import annotations

import pytorch_lightning as pl

from lexlip_data.loading.sampler import GlobalBatchSampler


class RunData(pl.LightningDataModule):
    """A subclass sets both attributes and says how many samples an epoch has.

    Attributes:
        global_batch: rows of a step, over all processes.
        seed: of the order of the samples.
    """

    global_batch: int
    seed: int
    _sampler: GlobalBatchSampler | None = None

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def n_pairs(self) -> int:
        """Training samples of one epoch, before the incomplete last batch is dropped."""
        raise NotImplementedError

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch: whole global batches."""
        return len(self.train_sampler)

    @property
    def train_sampler(self) -> GlobalBatchSampler:
        """The one training sampler: call its set_epoch and, to resume inside an epoch, set_start."""
        where = (self.rank, self.world_size)
        if self._sampler is None or (self._sampler.rank, self._sampler.world_size) != where:
            old = self._sampler
            self._sampler = GlobalBatchSampler(self.n_pairs, self.global_batch, *where, self.seed)
            if old is not None:  # asked for before the trainer knew its processes
                self._sampler.epoch, self._sampler.start = old.epoch, old.start
        return self._sampler
