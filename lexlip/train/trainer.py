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
from lexlip.train.run_dir import CHECKPOINTS, keep_old_log


def make_trainer(
    keys: dict, folder: Path, steps: int, validated: bool, watch: Watch, all_used: bool = True
) -> pl.Trainer:
    """The Trainer of a run.

    Args:
        keys: every key.
        folder: of the run.
        steps: optimiser steps of the whole training.
        validated: whether there is a val split to pick the best checkpoint by.
        watch: for signals.
        all_used: whether every trained parameter gets a gradient in every step.

    Raises:
        ConfigError: GPUs on a machine that shows none.
    """
    gpus = keys["num_gpus"]
    if gpus and not torch.cuda.is_available():
        raise ConfigError(f"num_gpus={gpus}, but this machine shows no GPU; set num_gpus=0 to run on the CPU")
    saving = not (keys["test_only"] or keys["fast_dev_run"])
    files = WholeFiles()
    callbacks = [TQDMProgressBar(refresh_rate=10)]
    loggers = []
    if saving:
        if environment.first_rank():
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            keep_old_log(folder)
        place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
        loggers = [TensorBoardLogger(**place), CSVLogger(**place)]
        callbacks += [Throughput(keys["log_every"]), _saver(keys, folder, files, validated)]
    return pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=environment.local_processes(keys),
        num_nodes=environment.nodes(keys),
        strategy=_strategy(keys, all_used),
        precision=trainer_precision(keys),
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=keys["val_check_interval"],
        check_val_every_n_epoch=1 if isinstance(keys["val_check_interval"], float) else None,
        logger=loggers,
        callbacks=[*callbacks, watch],
        plugins=[files],
        enable_checkpointing=False,  # Lightning's own; the Saver's are others
        enable_model_summary=False,
        fast_dev_run=keys["fast_dev_run"],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=keys["log_every"],
        deterministic="warn" if not gpus else False,
    )


def _strategy(keys: dict, all_used: bool) -> DDPStrategy | str:
    if environment.processes(keys) == 1:
        return "auto"
    wait = timedelta(seconds=keys["collective_timeout"])
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=not all_used, timeout=wait)


def _saver(keys: dict, folder: Path, files: WholeFiles, validated: bool) -> Saver:
    monitor, mode = ("val/rsum", "max") if keys["get_recall_metric"] else ("val/loss", "min")
    return Saver(
        folder / CHECKPOINTS, files, keys["checkpoint_minutes"], keys["checkpoint_steps"], keys["keep_checkpoints"],
        monitor if validated else "", mode,
    )  # fmt: skip


def trainer_precision(keys: dict) -> str:
    """Lightning's name of `precision`; 16 bits on the CPU are bfloat16."""
    name = str(keys["precision"]).removesuffix("-mixed").removesuffix("-true")
    if name == "32":
        return "32-true"
    return "bf16-mixed" if name == "bf16" or not keys["num_gpus"] else "16-mixed"
