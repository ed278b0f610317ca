"""The command line of both phases: a sacred experiment, checks, a Trainer.

`python run.py with key=value named_config ...` inside Phase1/ or Phase2/, or by its path from anywhere.
"""

from __future__ import annotations

import errno
import logging
import signal
import sys
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
    ".*your dataloader is not resumable",  # the sampler finds its place by itself
):
    warnings.filterwarnings("ignore", _message)

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from sacred import SETTINGS, Experiment  # noqa: E402
from sacred.observers import FileStorageObserver  # noqa: E402
from sacred.utils import SacredError  # noqa: E402

from lexlip.errors import (  # noqa: E402
    CheckpointError,  # noqa: E402
    ConfigError,  # noqa: E402
    LoaderDied,
    LostContact,  # noqa: E402
    TrainingError,
)
from lexlip.launch import environment  # noqa: E402
from lexlip.models.tokenizer import load_tokenizer  # noqa: E402
from lexlip.models.weights import read  # noqa: E402
from lexlip.train import config, run_dir  # noqa: E402
from lexlip.train.callbacks.interruption import Leave, Stopped, Watch  # noqa: E402
from lexlip.train.callbacks.saver import Saver  # noqa: E402
from lexlip.train.checkpoint import check_resumable  # noqa: E402
from lexlip.train.dense_module import DenseModule  # noqa: E402
from lexlip.train.module import RetrievalModule  # noqa: E402
from lexlip.train.trainer import make_trainer  # noqa: E402
from lexlip.utils.distributed import explain_lost_contact  # noqa: E402
from lexlip_data.errors import DataError  # noqa: E402
from lexlip_data.loading.datamodule import CaptionDataModule  # noqa: E402
from lexlip_data.loading.datasets import EvalImages  # noqa: E402
from lexlip_data.loading.faults import explain_loader_failure  # noqa: E402

SETTINGS.CAPTURE_MODE = "no"  # captured streams garble progress bars
SETTINGS.CONFIG.READ_ONLY_CONFIG = False

log = logging.getLogger(__name__)


class Refused(SacredError):
    """An error that is printed in one line without a traceback.

    Attributes:
        code: exit status; 2 for what would fail again in the same way, which launchers do not repeat.
    """

    def __init__(self, error: Exception):
        text = str(error)
        if "Original Traceback" in text:  # raised in a loader process, which hands on the whole traceback
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text, print_traceback=False, print_usage=False)
        self.code = 1 if isinstance(error, (LostContact, LoaderDied)) else 2


def make_experiment(name: str, phase: type[RetrievalModule]) -> Experiment:
    """The experiment of a phase: every key of base.yaml, every named config beside it.

    Args:
        name: of the experiment, in sacred's records.
        phase: what is trained, unless the key `head` asks for another.
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
                if not keys["fast_dev_run"] and environment.first_rank():
                    folder, _ = run_dir.settle(keys)
                    experiment.observers.append(FileStorageObserver(str(folder / "sacred")))
        return {}

    # Sacred lets a dict gain entries of any name only where it is an argument.
    @experiment.main
    def main(_config, data_sets, vit_kwargs, max_images):
        with _refusing():
            return run(plain(_config), phase)

    return experiment


def command_line(experiment: Experiment) -> None:
    """Run the command that was typed; a run that was stopped ends with its own exit status."""
    environment.leave_with_launcher()
    try:
        experiment.run_commandline()
    except Stopped as stopped:
        print(f"{stopped}; resume_from=auto goes on", file=sys.stderr)
        sys.exit(stopped.code)
    except SystemExit as leaving:  # sacred says 1 for everything
        if isinstance(leaving.__context__, SacredError):
            sys.exit(getattr(leaving.__context__, "code", 2))
        raise


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        raise Refused(TrainingError(f"no space left on the disk{place}; make room and start again")) from None
    except (ConfigError, CheckpointError, DataError, TrainingError, LostContact, LoaderDied) as error:
        raise Refused(error) from None


def check_keys(keys: dict, phase: type[RetrievalModule]) -> dict:
    """Refuse what neither the project nor the phase can do.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    keys = config.check(keys)
    trained(keys, phase).check_keys(keys)
    return keys


def trained(keys: dict, phase: type[RetrievalModule]) -> type[RetrievalModule]:
    """What the keys train: the dense model has no phases, either command line starts it."""
    return DenseModule if keys["head"] == "dense" else phase


def run(keys: dict, phase: type[RetrievalModule]) -> dict:
    """Train, or evaluate with `test_only`.

    Args:
        keys: every key.
        phase: what is trained.

    Returns:
        With `test_only` the metrics per data set, else the last logged validation metrics.

    Raises:
        ConfigError: keys that cannot work, before anything heavy is loaded.
        CheckpointError, DataError: files that cannot be used.
        TrainingError: the training cannot go on.
        LostContact: another process of the run ended, or cannot be reached.
        Stopped: by a signal; everything up to the last step is saved.
    """
    try:
        with Watch() as watch:
            return _run(check_keys(keys, phase), trained(keys, phase), watch)
    except Leave as leave:
        raise Stopped(leave.signum) from None
    finally:
        run_dir.forget()  # the next run of this process gets a folder of its own


def _run(keys: dict, phase: type[RetrievalModule], watch: Watch) -> dict:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for name in ("lexlip", "lexlip_data"):
        logging.getLogger(name).setLevel(logging.INFO)
    tokenizer = load_tokenizer(keys["tokenizer"], keys["vocab_size"])
    pl.seed_everything(keys["seed"], workers=False)
    if keys["cpu_threads"]:
        torch.set_num_threads(keys["cpu_threads"])
    torch.set_float32_matmul_precision("high")

    folder, resume = run_dir.settle(keys)
    if keys["test_only"]:  # an evaluation takes the weights and goes on with nothing
        keys, resume = {**keys, "load_path": keys["load_path"] or resume or ""}, None
    if resume and keys["load_path"]:
        log.info("going on from %s; load_path=%s was this run's beginning", resume, keys["load_path"])
    keys = {**keys, "resume_from": resume, **({"load_path": ""} if resume else {})}
    words = keys["max_text_len"] - keys["corner_tokens"]  # the corners take their places among max_text_len
    data = CaptionDataModule({**keys, "max_text_len": words}, tokenizer, mlm=phase.masks_needed(keys))
    data.setup("test" if keys["test_only"] else "fit")  # missing data is known before a tower is built
    _check_folds(keys, data)
    steps = keys["max_steps"] or (0 if keys["test_only"] else keys["max_epoch"] * data.steps_per_epoch)
    validated = not keys["test_only"] and bool(data.sources("val"))
    trainer = make_trainer(keys, folder, steps, validated, watch, phase.all_used(keys))
    module = phase.from_keys(keys, tokenizer)
    if resume:
        check_resumable(module, resume)
    with _explained(keys, folder):
        if keys["test_only"]:
            trainer.test(module, datamodule=data, verbose=False)
            return module.test_metrics
        if trainer.is_global_zero:
            print(describe(keys, module, data))
        if trainer.loggers:
            module.folder = folder
        _fit(trainer, module, data, resume)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _fit(trainer: pl.Trainer, module: RetrievalModule, data: CaptionDataModule, resume: str | None) -> None:
    savers = [callback for callback in trainer.callbacks if isinstance(callback, Saver)]
    validated = bool(savers and savers[0].monitor)
    try:
        if resume and validated and read(resume).get("validation_due"):
            # Its checkpoint was written before the validation, which may never have come.
            trainer.validate(module, datamodule=data, ckpt_path=resume, verbose=False, weights_only=True)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        if validated and module.validated_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False, weights_only=True)
    except Leave:
        if hasattr(trainer.strategy.launcher, "kill"):  # those that the Trainer itself started
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
    if savers and savers[0].files.error is not None:
        raise CheckpointError(
            f"the training is done, but its last checkpoint could not be written ({savers[0].files.error}); make room "
            "and start again with resume_from=auto"
        )


@contextmanager
def _explained(keys: dict, folder: Path) -> Iterator[None]:
    """Errors of libraries that say too little, in words that say what to do."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if died := explain_loader_failure(error):
            raise LoaderDied(str(died)) from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"no space left where {error.filename or folder} is written; the checkpoints in {folder} are whole. "
                "Make room, then the same command with resume_from=auto goes on"
            ) from error
        lost = explain_lost_contact(error, environment.processes(keys), keys["collective_timeout"])
        if lost is None:
            raise
        raise lost from error


def describe(keys: dict, module: RetrievalModule, data: CaptionDataModule) -> str:
    """What is about to run, with every derived number."""
    processes = environment.processes(keys)
    per_process = keys["batch_size"] // processes
    rows = keys["grad_cache_chunk"] or keys["per_gpu_batchsize"]
    most = "at most " if per_process % rows else ""
    steps = data.n_pairs // keys["batch_size"]
    length = f"{keys['max_steps']} steps" if keys["max_steps"] is not None else f"{keys['max_epoch']} epochs"
    millions = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    return (
        f"{type(module).__name__}: {millions:.1f}M trained parameters; {data.n_pairs} pairs, {steps} steps per epoch, "
        f"{length}; batch {keys['batch_size']} = {processes} processes x "
        f"{-(-per_process // rows)} passes x {most}{rows}"
    )


def plain(value: object) -> object:
    """Sacred's containers as plain dicts and lists, which checkpoints can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _check_folds(keys: dict, data: CaptionDataModule) -> None:
    for name, sources in data.sources("test").items() if keys["test_only"] and keys["eval_folds"] else ():
        pictures = len(EvalImages(sources, "vit", keys["image_size"]))  # repeated ids count once
        if pictures % keys["eval_folds"]:
            raise ConfigError(f"eval_folds={keys['eval_folds']} does not divide the {pictures} test pictures of {name}")
