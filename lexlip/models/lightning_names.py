"""Names of pytorch-lightning's own classes that its checkpoints hold, and what stands for them when one is read.

Until 1.4 Lightning keyed `checkpoint["callbacks"]` by the callbacks' classes, so such a file refers to them; the
official LexLIP code wrote its checkpoints with 1.3.2. Nothing of Lightning is imported for it: each class name is read
as an empty stand-in that can be a key and nothing else, and Lightning's dict of attributes as a dict. All other names
stay refused.
"""

from __future__ import annotations

from pickle import UnpicklingError

_CALLBACKS = (  # MODULE.CLASS, of all releases
    "base.Callback callback.Callback checkpoint.Checkpoint device_stats_monitor.DeviceStatsMonitor "
    "early_stopping.EarlyStopping finetuning.BaseFinetuning finetuning.BackboneFinetuning "
    "gpu_stats_monitor.GPUStatsMonitor gradient_accumulation_scheduler.GradientAccumulationScheduler "
    "lambda_function.LambdaCallback lr_monitor.LearningRateMonitor model_checkpoint.ModelCheckpoint "
    "model_summary.ModelSummary prediction_writer.BasePredictionWriter progress.ProgressBar progress.ProgressBarBase "
    "progress.base.ProgressBarBase progress.progress.ProgressBar progress.rich_progress.RichProgressBar "
    "progress.tqdm_progress.TQDMProgressBar pruning.ModelPruning quantization.QuantizationAwareTraining "
    "rich_model_summary.RichModelSummary stochastic_weight_avg.StochasticWeightAveraging timer.Timer "
    "xla_stats_monitor.XLAStatsMonitor"
).split()
_ATTRIBUTES = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


def _stand_in(name: str) -> type:
    """A class that a file may name, but of which it may make nothing."""

    def refuse(cls: type, *arguments: object, **named: object) -> object:
        raise UnpicklingError(f"an object of GLOBAL {name} ")

    return type(name.rpartition(".")[2], (), {"__new__": refuse})


def readable_names() -> list[tuple[type, str]]:
    """(what stands for it, full name) of each, as `torch.serialization.safe_globals` takes them."""
    packages = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
    names = [f"{package}.{name}" for package in packages for name in _CALLBACKS]
    return [*((_stand_in(name), name) for name in names), *((dict, name) for name in _ATTRIBUTES)]
