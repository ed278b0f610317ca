"""The Lightning Trainer of a run: machine, precision, loggers, checkpoints."""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip.train.callbacks.interruption import Watch
from lexlip.train.callbacks.saver import Saver
from lexlip.train.callbacks.terms import Terms
from lexlip.train.callbacks.throughput import Throughput
from lexlip.train.checkpoint import WholeFiles
from lexlip.train.config import Config
from lexlip.train.run_dir import CHECKPOINTS


def check_gpus(count: int) -> None:
    """Refuse more GPUs than this machine shows.

    Raises:
        ConfigError: naming how many there are.
    """
    if count and not torch.cuda.is_available():
        raise ConfigError(f"num_gpus={count}, but this machine shows no GPU; set num_gpus=0 to run on the CPU")
    if count > (there := torch.cuda.device_count()):
        raise ConfigError(f"num_gpus={count}, but this machine shows {there}; set num_gpus={there} or fewer")


def make_loggers(names: list[str], folder: Path) -> list[Logger]:
    """The loggers of a run that writes into a folder.

    Raises:
        ConfigError: Weights & Biases is wanted and not installed.
    """
    where = (str(folder.parent.parent), folder.parent.name, folder.name)
    loggers: list[Logger] = []
    for name in names:
        if name == "wandb":
            if find_spec("wandb") is None:
                raise ConfigError("loggers: wandb is not installed; pip install wandb, or leave it out of loggers")
            run = f"{folder.parent.name}/{folder.name}"
            loggers.append(WandbLogger(name=run, save_dir=str(folder), project="lexlip"))
        else:
            loggers.append({"tensorboard": TensorBoardLogger, "csv": CSVLogger}[name](*where))
    return loggers


def make_trainer(
    config: Config, folder: Path, steps: int, validated: bool, watch: Watch, all_used: bool
) -> tuple[pl.Trainer, Saver | None]:
    """The Trainer of a run, and the callback that writes its checkpoints; None: nothing is saved.

    Args:
        steps: optimiser steps of the whole training.
        validated: whether there is a val split to pick the best checkpoint by.
        all_used: whether every trained parameter gets a gradient in every step.

    Raises:
        ConfigError: as `check_gpus`.
    """
    gpus = config.num_gpus
    check_gpus(gpus)
    files = WholeFiles()
    loggers: list[Logger] = []
    saver = None
    callbacks: list[pl.Callback] = [TQDMProgressBar(refresh_rate=10)]
    if not (config.test_only or config.fast_dev_run):
        if environment.first_rank():
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            if (old := folder / "metrics.csv").is_file():  # of a former attempt; the logger would begin it anew
                old.rename(folder / f"metrics_{len(list(folder.glob('metrics_*.csv')))}.csv")
        loggers = make_loggers(config.loggers, folder)
        saver = Saver(config, folder / CHECKPOINTS, files, validated)
        callbacks += [Throughput(config.log_every, config.num_workers), saver]
        if config.head == "lexicon":
            callbacks.append(Terms(config.log_every, folder))
    strategy: DDPStrategy | str = "auto"
    if config.processes > 1:
        wait = timedelta(seconds=config.collective_timeout)
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=not all_used, timeout=wait)
    local = environment.local_processes(gpus)
    trainer = pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=[torch.cuda.current_device()] if gpus and local == 1 else local,
        num_nodes=config.processes // local,
        strategy=strategy,
        precision=config.trainer_precision,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=config.validated_every,
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
    return trainer, saver
