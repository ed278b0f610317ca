"""The command line of both phases: a sacred experiment, checks, a Trainer.

`python run.py with key=value named_config ...` inside Phase1/ or Phase2/, or by its path from anywhere.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Before the imports that raise them: notes for library authors, not for users.
for _message in (
    "pkg_resources is deprecated",
    ".*Experiment logs directory",
    ".*LeafSpec",
    ".*does not have many workers",
    ".*in eval mode at the start of training",  # the twins, on purpose
    ".*recommended to use `self.log",  # every process computes the same recall
    ".*could not find the monitored key",  # a run that ends between two validations is validated at its end
):
    warnings.filterwarnings("ignore", _message)

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar  # noqa: E402
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger  # noqa: E402
from pytorch_lightning.strategies import DDPStrategy  # noqa: E402
from sacred import SETTINGS, Experiment  # noqa: E402
from sacred.observers import FileStorageObserver  # noqa: E402
from sacred.utils import SacredError  # noqa: E402

from lexlip import checkpoint, config  # noqa: E402
from lexlip.checkpoint import CheckpointError  # noqa: E402
from lexlip.config import ConfigError  # noqa: E402
from lexlip.module import RetrievalModule  # noqa: E402
from lexlip_data.datamodule import CaptionDataModule  # noqa: E402
from lexlip_data.datasets import EvalImages  # noqa: E402
from lexlip_data.errors import DataError  # noqa: E402

SETTINGS.CAPTURE_MODE = "no"  # captured streams garble progress bars
SETTINGS.CONFIG.READ_ONLY_CONFIG = False

log = logging.getLogger(__name__)

VERSION_VARIABLE = "LEXLIP_VERSION"  # tells the processes that a run starts which folder it took


class Refused(SacredError):
    """A mistake of the user's, printed in one line without a traceback."""

    def __init__(self, error: Exception):
        text = str(error)
        if "Original Traceback" in text:  # raised in a loader process, which hands on the whole traceback
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text, print_traceback=False, print_usage=False)


def make_experiment(name: str, phase: type[RetrievalModule]) -> Experiment:
    """The experiment of a phase: every key of base.yaml, every named config beside it.

    Args:
        name: of the experiment, in sacred's records.
        phase: what is trained.
    """
    experiment = Experiment(name, save_git_info=False)
    experiment.logger = logging.getLogger(name)
    experiment.add_config(config.base())
    for key, value in config.named().items():
        experiment.add_named_config(key, value)

    @experiment.config_hook
    def before_anything_heavy(config, command_name, logger):
        if command_name == "main":
            keys = plain({key: value for key, value in config.items() if key != "__doc__"})
            with _refusing():
                check_keys(keys, phase)
            if not keys["fast_dev_run"] and _global_rank() == 0:
                experiment.observers.append(FileStorageObserver(str(run_folder(keys) / "sacred")))
        return {}

    # Sacred lets a dict gain entries of any name only where it is an argument.
    @experiment.main
    def main(_config, data_sets, vit_kwargs, max_images):
        with _refusing():
            return run(plain(_config), phase)

    return experiment


def _global_rank() -> int:
    """Of this process, before there is a process group."""
    return int(os.environ.get("RANK", 0)) or int(os.environ.get("NODE_RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (ConfigError, CheckpointError, DataError) as error:
        raise Refused(error) from None


def check_keys(keys: dict, phase: type[RetrievalModule]) -> dict:
    """Refuse what neither the project nor the phase can do.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    keys = config.check(keys)
    phase.check_keys(keys)
    return keys


def run(keys: dict, phase: type[RetrievalModule]) -> dict:
    """Train, or evaluate with `test_only`.

    Args:
        keys: every key.
        phase: what is trained.

    Returns:
        With `test_only` the metrics per data set, else the last logged validation metrics.

    Raises:
        ConfigError: keys that cannot work, before anything heavy is loaded.
    """
    try:
        return _run(check_keys(keys, phase), phase)
    finally:
        os.environ.pop(VERSION_VARIABLE, None)  # the next run of this process gets a folder of its own


def _run(keys: dict, phase: type[RetrievalModule]) -> dict:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for name in ("lexlip", "lexlip_data"):
        logging.getLogger(name).setLevel(logging.INFO)
    tokenizer = config.load_tokenizer(keys["tokenizer"], keys["vocab_size"])
    pl.seed_everything(keys["seed"], workers=False)
    if keys["cpu_threads"]:
        torch.set_num_threads(keys["cpu_threads"])
    torch.set_float32_matmul_precision("high")

    folder = run_folder(keys)
    data = CaptionDataModule(keys, tokenizer, mlm=phase.masks_needed(keys))
    data.setup("test" if keys["test_only"] else "fit")  # missing data is known before a tower is built
    _check_folds(keys, data)
    steps = keys["max_steps"] or (0 if keys["test_only"] else keys["max_epoch"] * data.steps_per_epoch)
    trainer = make_trainer(keys, folder, steps, validated=not keys["test_only"] and bool(data.sources("val")))
    module = phase.from_keys(keys, tokenizer)
    if keys["resume_from"]:
        checkpoint.check_resumable(module, keys["resume_from"])
    if keys["test_only"]:
        trainer.test(module, datamodule=data, verbose=False)
        return module.test_metrics
    if trainer.is_global_zero:
        print(describe(keys, module, data))
    trainer.fit(module, datamodule=data, ckpt_path=keys["resume_from"], weights_only=True)
    _finish(trainer, module, data, folder)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def describe(keys: dict, module: RetrievalModule, data: CaptionDataModule) -> str:
    """What is about to run, with every derived number."""
    processes = max(1, keys["num_gpus"]) * keys["num_nodes"]
    per_process = keys["batch_size"] // processes
    steps = data.n_pairs // keys["batch_size"]
    length = f"{keys['max_steps']} steps" if keys["max_steps"] is not None else f"{keys['max_epoch']} epochs"
    millions = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    return (
        f"{type(module).__name__}: {millions:.1f}M trained parameters; {data.n_pairs} pairs, {steps} steps per epoch, "
        f"{length}; batch {keys['batch_size']} = {processes} processes x "
        f"{per_process // keys['per_gpu_batchsize']} passes x {keys['per_gpu_batchsize']}"
    )


def _finish(trainer: pl.Trainer, module: RetrievalModule, data: CaptionDataModule, folder: Path) -> None:
    """Keep and validate the last weights when `max_steps` ended the run between two validations."""
    saver = trainer.checkpoint_callback
    if saver is None or trainer.interrupted or module.validated_step == trainer.global_step:
        return
    last = folder / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(last)
    if saver.monitor is None:
        return
    best, sign = saver.best_model_score, 1 if saver.mode == "max" else -1
    trainer.validate(module, datamodule=data, verbose=False, weights_only=True)
    score = trainer.callback_metrics.get(saver.monitor)
    if trainer.is_global_zero and score is not None and (best is None or sign * score > sign * best):
        draft = last.with_name("best.ckpt.tmp")
        shutil.copyfile(last, draft)
        draft.replace(last.with_name("best.ckpt"))


def plain(value: object) -> object:
    """Sacred's containers as plain dicts and lists, which checkpoints can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def run_folder(keys: dict) -> Path:
    """log_dir/exp_name_seed{seed}/version_{n}; all processes of a run agree on n."""
    parent = Path(keys["log_dir"]) / f"{keys['exp_name']}_seed{keys['seed']}"
    version = keys["version"]
    if version is None:
        version = os.environ.get(VERSION_VARIABLE)  # set by the first process for those that it starts
    if version is None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("version is not set: processes started by torchrun cannot agree on a free number; version=0")
    if version is None:
        taken = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit()]
        version = max(taken, default=-1) + 1
        os.environ[VERSION_VARIABLE] = str(version)
    return parent / (f"version_{version}" if str(version).isdigit() else str(version))


def _check_folds(keys: dict, data: CaptionDataModule) -> None:
    for name, sources in data.sources("test").items() if keys["test_only"] and keys["eval_folds"] else ():
        pictures = len(EvalImages(sources, "vit", keys["image_size"]))  # repeated ids count once
        if pictures % keys["eval_folds"]:
            raise ConfigError(f"eval_folds={keys['eval_folds']} does not divide the {pictures} test pictures of {name}")


def make_trainer(keys: dict, folder: Path, steps: int, validated: bool) -> pl.Trainer:
    """The Trainer: machine, precision, loggers, checkpoints `last` and best on val.

    Args:
        keys: every key.
        folder: of the run.
        steps: optimiser steps of the whole training.
        validated: whether there is a val split to pick the best checkpoint by.
    """
    gpus, nodes = keys["num_gpus"], keys["num_nodes"]
    if gpus and not torch.cuda.is_available():
        raise ConfigError(f"num_gpus={gpus}, but this machine shows no GPU; set num_gpus=0 to run on the CPU")
    devices = gpus or 1
    distributed = devices * nodes > 1
    saving = not (keys["test_only"] or keys["fast_dev_run"])
    loggers = []
    if saving:
        place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
        loggers = [TensorBoardLogger(**place), CSVLogger(**place)]
    return pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(broadcast_buffers=False) if distributed else "auto",
        precision=trainer_precision(keys),
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=keys["val_check_interval"],
        check_val_every_n_epoch=1 if isinstance(keys["val_check_interval"], float) else None,
        logger=loggers,
        callbacks=[*_checkpoints(keys, folder, saving, validated), TQDMProgressBar(refresh_rate=10)],
        enable_checkpointing=saving,
        enable_model_summary=False,
        fast_dev_run=keys["fast_dev_run"],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        deterministic="warn" if not gpus else False,
    )


def _checkpoints(keys: dict, folder: Path, saving: bool, validated: bool) -> list[ModelCheckpoint]:
    if not saving:
        return []
    place = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    # A callback of its own: save_last writes only when the watched metric has improved.
    last = ModelCheckpoint(filename="last", **place)
    if not validated:
        return [last]
    monitor, mode = ("val/rsum", "max") if keys["get_recall_metric"] else ("val/loss", "min")
    return [ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **place), last]


def trainer_precision(keys: dict) -> str:
    """Lightning's name of `precision`; 16 bits on the CPU are bfloat16."""
    name = str(keys["precision"]).removesuffix("-mixed").removesuffix("-true")
    if name == "32":
        return "32-true"
    return "bf16-mixed" if name == "bf16" or not keys["num_gpus"] else "16-mixed"
