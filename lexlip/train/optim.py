"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters in two groups: matrices with decay; biases, bias tables, norms and other vectors without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def make_optimizer(module: nn.Module, keys: dict) -> torch.optim.Optimizer:
    """The optimiser that `optim_type` names, over the module's trained parameters."""
    groups = parameter_groups(module, keys["weight_decay"])
    if keys["optim_type"] == "sgd":
        return torch.optim.SGD(groups, lr=keys["learning_rate"], momentum=0.9)
    kind = torch.optim.AdamW if keys["optim_type"] == "adamw" else torch.optim.Adam
    # With loss scaling a fused optimiser unscales by itself, too late for the gradient's norm to be clipped.
    scaled = keys["num_gpus"] and str(keys["precision"]).startswith("16")
    return kind(
        groups, lr=keys["learning_rate"], betas=tuple(keys["adam_betas"]), eps=keys["adam_eps"], fused=not scaled
    )


def in_steps(length: int | float, steps: int) -> int:
    """A length that is a share of all `steps` if a float, and steps if an int."""
    return int(steps * length) if isinstance(length, float) else length


def make_schedule(optimizer: torch.optim.Optimizer, keys: dict, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a decay to `end_lr` that ends at `steps`.

    Args:
        steps: optimiser steps of the whole run.
    """
    warmup = in_steps(keys["warmup_steps"], steps)
    floor = keys["end_lr"] / keys["learning_rate"] if keys["learning_rate"] else 0.0
    power = keys["decay_power"]

    def share(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        curve = 0.5 * (1 - math.cos(math.pi * left)) if power == "cosine" else left**power
        return floor + (1 - floor) * curve

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
