"""What keeps vectors short, for both phases and for heads on frozen towers: penalties, their weights, cuts.

Each side, "text" and "image", has a weight, a ramp and a kind of penalty; a target of active terms replaces a weight
that one would have to guess.

B rows, V terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lexlip.train.config import Config
from lexlip.train.losses import flops, mean_l1, ramp
from lexlip.train.optim import in_steps
from lexlip.train.step import total
from lexlip.utils.distributed import sum_over_ranks

SIDES = ("text", "image")
MEMORY = 0.5  # of the running mean of active terms, per step
SPEED = 40.0  # over the steps that a target has, an error of 1 in the logarithm moves the logarithm of the weight by it
DAMPING = 16.0  # what a change of that error moves it by at once
SHORTEST = 25  # steps until a target at the least: faster, the weight swings from one bound to the other
LEAD = 0.9  # the goal is the target after this fraction of the steps, so that the terms can settle
MOST = math.log(1e6)  # by which a controller may change its weight, either way


class TermTarget:
    """Moves a weight so that the mean number of active terms reaches a target by a step, and stays there.

    The goal goes from where training started to the target, its logarithm along half a cosine. The weight is
    multiplied by what the logarithm of terms / goal says, and by how that changes (a PI controller of the logarithms).

    Attributes:
        mean: running mean of active terms, 0 before the first step.
        start: its first value.
        change: logarithm of the factor by which the weight is multiplied.
    """

    def __init__(self, target: float, by: int = 1):
        self.target, self.by = target, by
        self.mean = self.start = self.change = self.error = 0.0

    def observe(self, terms: float, step: int) -> None:
        """Take a step's mean number of active terms of the global batch."""
        terms = max(terms, 0.5)
        self.start = self.start or terms
        self.mean = MEMORY * (self.mean or terms) + (1 - MEMORY) * terms
        share = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (step + 1) / (LEAD * self.by)))
        goal = self.start ** (1 - share) * self.target**share
        error = math.log(self.mean / goal)
        self.change += SPEED / self.by * error + DAMPING * (error - self.error)
        self.change, self.error = max(-MOST, min(MOST, self.change)), error

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"mean": self.mean, "start": self.start, "change": self.change, "error": self.error}

    def load(self, state: Mapping[str, float]) -> None:
        """What `state` gave."""
        for name, value in state.items():
            setattr(self, name, float(value))


class Sparsity:
    """The penalty of a batch's vectors, and the cuts that are trained, at every step of a run."""

    def __init__(self, config: Config):
        self.config = config
        self.steps = 0  # of the run, once a Trainer says it
        self.warmup = dict.fromkeys(SIDES, 0)  # steps
        wanted = {side: getattr(config, f"target_terms_{side}") for side in SIDES}
        self.targets = {side: TermTarget(terms) for side, terms in wanted.items() if terms is not None}
        self.observed: dict[str, Tensor] = {}  # active terms of the latest step in training

    def begin(self, steps: int) -> None:
        """Tell how many optimiser steps the run has."""
        config, self.steps = self.config, steps
        for side in SIDES:
            own = getattr(config, f"flops_warmup_{side}")
            self.warmup[side] = in_steps(config.flops_warmup if own is None else own, steps)
        for target in self.targets.values():
            target.by = max(SHORTEST, in_steps(config.target_steps, steps))

    def weight(self, side: str, step: int | None) -> float:
        """Of a side's penalty at a step; in validation, None, that of the config, so that losses compare."""
        own = getattr(self.config, f"flops_weight_{side}")
        weight = self.config.flops_weight if own is None else own
        if step is None:
            return weight
        if side in self.targets:
            return weight * math.exp(self.targets[side].change)
        return weight * ramp(step, self.warmup[side])

    def whole_from(self, side: str) -> int:
        """The step from which a side's penalty has its whole weight, or its target."""
        return self.targets[side].by if side in self.targets else self.warmup[side]

    def loss(self, sides: Mapping[str, Sequence[Tensor]], step: int | None) -> Tensor:
        """Weighted penalties of (B, V) normalised vectors, the mean over those of one side, added up."""
        losses = []
        for side, vectors in sides.items():
            if step is not None and side in self.targets:
                self.observed[side] = active_terms(vectors[0])
            penalties = [self._penalty(side, one) for one in vectors]
            losses.append(self.weight(side, step) * (total(penalties) / len(penalties)))
        return total(losses)

    def _penalty(self, side: str, vectors: Tensor) -> Tensor:
        threshold = self.config.flops_threshold
        if getattr(self.config, f"penalty_{side}") == "l1":
            return mean_l1(vectors, threshold)
        rows = self.config.per_gpu_batchsize if self.config.loss_rows == "micro_batch" else None
        return flops(vectors, threshold, rows)

    def after_step(self, step: int) -> None:
        """Once the weights have moved in the step of that number."""
        for side, target in self.targets.items():
            if side in self.observed:
                target.observe(float(self.observed[side]), step)

    def moved_weights(self, step: int) -> dict[str, float]:
        """The weights that targets have moved, by the name that the logs have."""
        return {f"flops_weight_{side}": self.weight(side, step) for side in self.targets}

    def cuts(self, step: int | None) -> list[int]:
        """The k of `train_top_k` at a step: they fall from `top_k_start` to their values (CSRv2)."""
        start, share = self.config.top_k_start, 1.0
        if start is not None and step is not None:
            share = min(1.0, step / max(1, in_steps(self.config.top_k_steps, self.steps)))
        return [round((start or k) + (k - (start or k)) * share) for k in self.config.train_top_k]

    def state(self) -> dict[str, dict[str, float]]:
        """For a checkpoint."""
        return {side: target.state() for side, target in self.targets.items()}

    def load(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """What `state` gave; sides without a target in this run are left out."""
        for side, target in self.targets.items():
            target.load(state.get(side, {}))


def active_terms(vectors: Tensor) -> Tensor:
    """() mean number of active terms of (B, V) vectors over all processes, without gradient."""
    counted = vectors.new_tensor([float((vectors.detach() > 0).sum()), float(len(vectors))])
    terms, rows = sum_over_ranks(counted)
    return terms / rows


def bias_shift(logits: Tensor, terms: float) -> float:
    """What to add to all biases, so that (B, V) largest logits have so many positive terms on average.

    The mean is over all processes. Found by bisection: terms are counted, which any number of processes can.
    """
    low, high = -1e3, 1e3
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if float(active_terms((logits + middle).relu())) > terms else (middle, high)
    return low
