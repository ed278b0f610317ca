"""Optimiser and learning-rate schedule."""

import math
import re

import torch
from torch import nn

from lexlip.train.config import Config

# Norms and layer scale inside the blocks of BEiT or ViT. Their names in the official code slip through its list of what
# has no decay, which all other norms are on.
BLOCKS = re.compile(r"(.*\.)?image_encoder\.backbone\.blocks\.\d+\.(norm[12]\.weight|gamma_[12]|ls[12]\.gamma)")


def parameter_groups(
    module: nn.Module, weight_decay: float, learning_rate: float | None = None, block_decay: bool = False
) -> list[dict]:
    """Trained parameters by their decay and rate: first matrices, with decay; then biases, norms and other vectors.

    A module may say otherwise of parameters of its own: `rate_factors`, name -> multiple of the learning rate, and
    `without_decay`, names. Those of another rate follow in groups of their own; `learning_rate` None leaves it out.
    With `block_decay`, what `BLOCKS` names has decay too.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for path, parameter in module.named_parameters():
        if parameter.requires_grad:
            folder, _, name = path.rpartition(".")
            owner = module.get_submodule(folder)
            decays = parameter.ndim > 1 and "bias" not in path and name not in getattr(owner, "without_decay", ())
            decays |= block_decay and BLOCKS.fullmatch(path) is not None
            groups.setdefault((getattr(owner, "rate_factors", {}).get(name, 1.0), decays), []).append(parameter)
    return [
        {"params": some, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr": learning_rate * factor} if learning_rate is not None else {})
        for (factor, decays), some in groups.items()
    ]


def make_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser that `optim_type` names, over the module's trained parameters."""
    groups = parameter_groups(module, config.weight_decay, config.learning_rate, config.block_decay)
    if config.optim_type == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if config.optim_type == "adamw" else torch.optim.Adam
    # With loss scaling a fused optimiser unscales by itself, too late for the gradient's norm to be clipped.
    scaled = config.trainer_precision == "16-mixed"
    one, two = config.adam_betas
    return kind(groups, lr=config.learning_rate, betas=(one, two), eps=config.adam_eps, fused=not scaled)


def in_steps(length: int | float, steps: int) -> int:
    """A length that is a fraction of all `steps` if a float, and steps if an int."""
    return int(steps * length) if isinstance(length, float) else length


def make_schedule(optimizer: torch.optim.Optimizer, config: Config, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a decay to `end_lr`, over so many optimiser steps of the whole run."""
    warmup = in_steps(config.warmup_steps, steps)
    floor = config.end_lr / config.learning_rate if config.learning_rate else 0.0
    power = config.decay_power

    def ratio(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        curve = 0.5 * (1 - math.cos(math.pi * left)) if power == "cosine" else left ** float(power)
        return floor + (1 - floor) * curve

    return torch.optim.lr_scheduler.LambdaLR(optimizer, ratio)
