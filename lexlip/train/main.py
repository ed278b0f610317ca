"""The command line of both phases: a sacred experiment, checks, a Trainer.

`python run.py with key=value named_config ...` inside Phase1/ or Phase2/, or by its path from anywhere.
"""

# ruff: noqa: E402  (the filters below must stand before the imports that they quiet)
import errno
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before the imports that raise them: notes for library authors, not for users.
for _message in (
    "pkg_resources is deprecated",
    ".*Experiment logs directory",
    ".*LeafSpec",
    ".*does not have many workers",
    ".*in eval mode at the start of training",  # the momentum encoder, on purpose
    ".*recommended to use `self.log",  # every process computes the same recall
    ".*your dataloader is not resumable",  # the sampler knows its position by itself
):
    warnings.filterwarnings("ignore", _message)

import pytorch_lightning as pl
import torch
from docopt import DocoptExit, docopt
from sacred import SETTINGS
from sacred import Experiment as SacredExperiment
from sacred.observers import FileStorageObserver
from sacred.utils import SacredError

from lexlip.errors import CheckpointError, ConfigError, LaunchError, LoaderDied, LostContact, TrainingError, UserError
from lexlip.features.store import FeatureSplit, FeatureStore
from lexlip.launch import environment
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.weights import read
from lexlip.train import run_dir
from lexlip.train.callbacks.interruption import Leave, Stopped, Watch
from lexlip.train.callbacks.saver import Saver
from lexlip.train.checkpoint import check_resumable, ways_of
from lexlip.train.config import Config, base, check_seed, named
from lexlip.train.dense import DenseModule
from lexlip.train.features import FeatureDataModule
from lexlip.train.frozen import FrozenDenseModule, FrozenModule
from lexlip.train.module import RetrievalModule
from lexlip.train.trainer import check_gpus, make_trainer
from lexlip.train.words import read_words
from lexlip.utils.distributed import explain_lost_contact
from lexlip.utils.paths import check_output
from lexlip_data.command import USAGE, reason
from lexlip_data.errors import DataError
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.datasets import EvalImages
from lexlip_data.loading.faults import explain_loader_failure

SETTINGS.CAPTURE_MODE = "no"  # captured streams garble progress bars
SETTINGS.CONFIG.READ_ONLY_CONFIG = False

log = logging.getLogger(__name__)


class Refused(SacredError):
    """An error that is printed in one line without a traceback."""

    def __init__(self, error: Exception):
        text = reason(error) if isinstance(error, OSError) else str(error)
        if "Original Traceback" in text:  # raised in a loader process, which hands on the whole traceback
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text, print_traceback=False, print_usage=False)
        passing = isinstance(error, OSError) and error.errno not in _LASTING
        self.code = 1 if passing or isinstance(error, (LostContact, LoaderDied)) else USAGE


# What the system refuses again until a user does something; any other failure of a disk or network may pass.
_LASTING = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


class Experiment(SacredExperiment):
    """Sacred's, but a refused run leaves nothing behind that takes a version number."""

    def run(self, *args: Any, **named: Any) -> Any:
        """As sacred's `run`.

        Raises:
            Refused: for what `main.run` lists, and for files that cannot be read or written.
        """
        try:
            return super().run(*args, **named)
        except BrokenPipeError:
            raise  # whoever read the output went away
        except (OSError, UserError, DataError, TrainingError, LostContact, LoaderDied) as error:
            run_dir.give_back()
            raise Refused(error) from error
        finally:
            run_dir.forget()  # the next run of this process gets a directory of its own


def make_experiment(name: str, phase: type[RetrievalModule]) -> Experiment:
    """The experiment of a phase, by its name in sacred's records: the keys of base.yaml, and every named config."""
    experiment = Experiment(name, save_git_info=False)
    logger = logging.getLogger(name)
    experiment.logger = logger  # type: ignore[assignment]  # sacred's own is None at first
    # "Failed after ..." and "Aborted after ...": the error's own line says more.
    logger.getChild(name).addFilter(lambda record: record.levelno < logging.WARNING or " after " not in record.msg)
    experiment.add_config(base())
    for file, values in named().items():
        experiment.add_named_config(file, values)

    @experiment.config_hook
    def before_anything_heavy(config, command_name, logger):
        check_seed(config.get("seed"))  # sacred seeds NumPy with it, whatever the command
        if command_name == "main":
            checked = check_config({key: value for key, value in config.items() if key != "__doc__"}, phase)
            check_gpus(checked.num_gpus)
            check_output("metrics_file", Path(checked.metrics_file) if checked.metrics_file else None)
            if checked.load_path and not Path(checked.load_path).exists():
                raise CheckpointError(f"load_path={checked.load_path}: no such checkpoint or model folder")
            if not checked.fast_dev_run and environment.first_rank():
                folder, _ = run_dir.choose(checked)
                experiment.observers.append(FileStorageObserver(str(folder / "sacred")))
        return {}

    # Sacred lets a dict gain entries of any name only where it is an argument.
    @experiment.main
    def main(_config, data_sets, vit_kwargs, max_images):
        return run(check_config(_config, phase), phase)

    return experiment


def command_line(experiment: SacredExperiment) -> int:
    """Run the command that was typed; returns the exit status, its own for a run that was stopped."""
    environment.leave_with_launcher()
    try:
        environment.check()
        _, _, usage = experiment.get_usage()
        words = docopt(usage, sys.argv[1:], default_help=False)
        command, commands = words["COMMAND"] or experiment.default_command, dict(experiment.gather_commands())
        if words["help"] or words["--help"] or words["--pdb"]:  # sacred's own way
            experiment.run_commandline()
            return 0
        if command not in commands:
            raise ConfigError(f"{command} is no command; known are {', '.join(commands)}")
        keys, configs = read_words(words["UPDATE"], named())
        experiment.run(command, keys, configs, info={}, meta_info={}, options=words)
    except DocoptExit:
        print(
            f"error: {' '.join(sys.argv[1:])}: write COMMAND or nothing, then with key=value ..., or help",
            file=sys.stderr,
        )
        return USAGE
    except Stopped as stopped:
        print(f"{stopped}; resume_from=auto goes on", file=sys.stderr)
        return stopped.code
    except (SacredError, ConfigError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "code", USAGE)
    return 0


def check_config(values: Mapping, phase: type[RetrievalModule]) -> Config:
    """The config of these values, one for every key; refuses what neither the project nor the phase can do.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    config = Config.checked({key: plain(value) for key, value in values.items()})
    trained(config, phase).check_config(config)
    return config


def trained(config: Config, phase: type[RetrievalModule]) -> type[RetrievalModule]:
    """What the config trains: the dense model and heads on features have no phases, either command line starts them."""
    dense = config.head == "dense"
    if config.features:
        return FrozenDenseModule if dense else FrozenModule
    return DenseModule if dense else phase


def run(config: Config, phase: type[RetrievalModule]) -> dict:
    """Train a phase, or evaluate with `test_only`.

    Returns:
        With `test_only` the metrics per data set, else the last logged validation metrics.

    Raises:
        ConfigError: a config that cannot work, before anything heavy is loaded.
        CheckpointError, DataError: files that cannot be used.
        TrainingError: the training cannot go on.
        LostContact: another process of the run ended, or cannot be reached.
        Stopped: by a signal; everything up to the last step is saved.
    """
    try:
        with Watch() as watch:
            return _run(config, trained(config, phase), watch)
    except Leave as leave:
        raise Stopped(*leave.args) from None


def _run(config: Config, phase: type[RetrievalModule], watch: Watch) -> dict:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for name in ("lexlip", "lexlip_data"):
        logging.getLogger(name).setLevel(logging.INFO)
    if (ignored := phase.ignored_weights(config)) and not config.test_only and environment.first_rank():
        log.warning("loss_names=%s has no effect: %s has no such losses", ignored, phase.name)
    store = FeatureStore(config.features) if config.features else None
    tokenizer = store.tokenizer if store else load_tokenizer(config.tokenizer, config.vocab_size)
    pl.seed_everything(config.seed, workers=False)
    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    torch.set_float32_matmul_precision("high")

    folder, resume = run_dir.choose(config)
    if config.test_only:  # an evaluation takes the weights and goes on with nothing
        config, resume = config.changed(load_path=config.load_path or resume or ""), None
    if resume and config.load_path:
        log.info("going on from %s; load_path=%s was this run's beginning", resume, config.load_path)
    config = config.changed(resume_from=resume, load_path="" if resume else config.load_path)
    if resume:
        config = config.changed(**ways_of(resume))
    data: FeatureDataModule | CaptionDataModule
    if store is not None:
        data = FeatureDataModule(config, store)
    else:
        length = config.max_text_len - config.corner_tokens  # the corners take their positions among max_text_len
        values = {**config.as_dict(), "max_text_len": length}
        data = CaptionDataModule(values, tokenizer, mlm=phase.masks_needed(config))
    data.setup("test" if config.test_only else "fit")  # missing data is known before a tower is built
    _check_folds(config, data)
    steps = config.max_steps or (0 if config.test_only else config.max_epoch * data.steps_per_epoch)
    validated = not config.test_only and bool(data.sources("val"))
    module = phase.from_config(config, tokenizer)
    config = module.config  # with what the weights decide
    trainer, saver = make_trainer(config, folder, steps, validated, watch, phase.all_used(config))
    if resume:
        check_resumable(module, resume, config.block_decay)
    run_dir.begin()
    with _explained(config, folder):
        if config.test_only:
            trainer.test(module, datamodule=data, verbose=False)
            return module.test_metrics
        if trainer.is_global_zero:
            print(describe(config, module, data))
        if saver is not None:
            module.run_dir = folder
        _fit(trainer, module, data, resume, saver)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _fit(
    trainer: pl.Trainer, module: RetrievalModule, data: FeatureDataModule | CaptionDataModule, resume: str | None,
    saver: Saver | None,
) -> None:  # fmt: skip
    validated = saver is not None and bool(saver.monitor)
    try:
        if resume and validated and read(resume).get("validation_due"):
            # Its checkpoint was written before the validation, which may never have come.
            trainer.validate(module, datamodule=data, ckpt_path=resume, verbose=False, weights_only=True)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        if validated and module.validated_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False, weights_only=True)
    except Leave:
        if kill := getattr(trainer.strategy.launcher, "kill", None):  # the processes that the Trainer itself started
            kill(signal.SIGKILL)
        raise
    if saver is not None and saver.files.error is not None:
        raise CheckpointError(
            f"the training is done, but its last checkpoint could not be written ({saver.files.error}); make room "
            "and start again with resume_from=auto"
        )


@contextmanager
def _explained(config: Config, folder: Path) -> Iterator[None]:
    """Replace errors of libraries that say too little by ones that say what to do."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if died := explain_loader_failure(error):
            raise LoaderDied(str(died)) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"no space left where {error.filename or folder} is written; the checkpoints in {folder} are whole. "
                "Make room, then the same command with resume_from=auto goes on"
            ) from error
        if lost := explain_lost_contact(error, config.processes, config.collective_timeout):
            raise lost from error
        raise


def describe(config: Config, module: RetrievalModule, data: FeatureDataModule | CaptionDataModule) -> str:
    """What is about to run, with every derived number."""
    per_process, rows = config.batch_size // config.processes, config.rows_at_once
    most = "at most " if per_process % rows else ""
    steps = data.n_pairs // config.batch_size
    length = f"{config.max_steps} steps" if config.max_steps is not None else f"{config.max_epoch} epochs"
    millions = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    return (
        f"{type(module).__name__}: {millions:.1f}M trained parameters; {data.n_pairs} pairs, {steps} steps per epoch, "
        f"{length}; batch {config.batch_size} = {config.processes} processes x "
        f"{-(-per_process // rows)} micro-batches x {most}{rows}"
    )


def plain(value: object) -> object:
    """Sacred's containers as plain dicts and lists, which checkpoints can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _check_folds(config: Config, data: FeatureDataModule | CaptionDataModule) -> None:
    for name, sources in data.sources("test").items() if config.test_only and config.eval_folds else ():
        if isinstance(sources, FeatureSplit):
            images = len(sources.image_ids)
        else:
            images = len(EvalImages(sources, "vit", config.image_size))  # repeated ids count once
        if images % config.eval_folds:
            raise ConfigError(f"eval_folds={config.eval_folds} does not divide the {images} test images of {name}")
