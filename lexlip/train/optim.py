"""Optimiser and learning-rate schedule."""

import math
import re

import torch
from torch import nn

from lexlip.train.config import Config

# Norms and layer scale inside the blocks of BEiT or ViT. Their names in the official code slip through its list of what
# has no decay, which all other norms are on.
BLOCKS = re.compile(r"(.*\.)?image_encoder\.backbone\.blocks\.\d+\.(norm[12]\.weight|gamma_[12]|ls[12]\.gamma)")


def parameter_groups(module: nn.Module, weight_decay: float, block_decay: bool = False) -> list[dict]:
    """Trained parameters in two groups: matrices with decay; biases, bias tables, norms and other vectors without.

    With `block_decay`, what `BLOCKS` names has decay too.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_blocks = block_decay and BLOCKS.fullmatch(name) is not None
            groups[in_blocks or parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser that `optim_type` names, over the module's trained parameters."""
    groups = parameter_groups(module, config.weight_decay, config.block_decay)
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
