"""The Lightning Trainer of a run: machine, precision, loggers, checkpoints."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip.train.callbacks.interruption import Watch
from lexlip.train.callbacks.saver import Saver
from lexlip.train.callbacks.throughput import Throughput
from lexlip.train.checkpoint import WholeFiles
from lexlip.train.config import Config
from lexlip.train.run_dir import CHECKPOINTS, keep_old_log


def make_trainer(
    config: Config, folder: Path, steps: int, validated: bool, watch: Watch, all_used: bool = True
) -> pl.Trainer:
    """The Trainer of a run.

    Args:
        config: of the run.
        folder: of the run.
        steps: optimiser steps of the whole training.
        validated: whether there is a val split to pick the best checkpoint by.
        watch: for signals.
        all_used: whether every trained parameter gets a gradient in every step.

    Raises:
        ConfigError: GPUs on a machine that shows none.
    """
    gpus = config.num_gpus
    if gpus and not torch.cuda.is_available():
        raise ConfigError(f"num_gpus={gpus}, but this machine shows no GPU; set num_gpus=0 to run on the CPU")
    saving = not (config.test_only or config.fast_dev_run)
    files = WholeFiles()
    callbacks = [TQDMProgressBar(refresh_rate=10)]
    loggers = []
    if saving:
        if environment.first_rank():
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            keep_old_log(folder)
        place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
        loggers = [TensorBoardLogger(**place), CSVLogger(**place)]
        callbacks += [Throughput(config.log_every), _saver(config, folder, files, validated)]
    return pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=environment.local_processes(config.num_gpus),
        num_nodes=config.processes // environment.local_processes(config.num_gpus),
        strategy=_strategy(config, all_used),
        precision=config.trainer_precision,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=config.val_check_interval,
        check_val_every_n_epoch=1 if isinstance(config.val_check_interval, float) else None,
        logger=loggers,
        callbacks=[*callbacks, watch],
        plugins=[files],
        enable_checkpointing=False,  # Lightning's own; the Saver's are others
        enable_model_summary=False,
        fast_dev_run=config.fast_dev_run,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        deterministic="warn" if not gpus else False,
    )


def _strategy(config: Config, all_used: bool) -> DDPStrategy | str:
    if config.processes == 1:
        return "auto"
    wait = timedelta(seconds=config.collective_timeout)
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=not all_used, timeout=wait)


def _saver(config: Config, folder: Path, files: WholeFiles, validated: bool) -> Saver:
    monitor, mode = ("val/rsum", "max") if config.get_recall_metric else ("val/loss", "min")
    return Saver(
        folder / CHECKPOINTS, files, config.checkpoint_minutes, config.checkpoint_steps, config.keep_checkpoints,
        monitor if validated else "", mode,
    )  # fmt: skip
