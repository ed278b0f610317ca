"""Which terms a training uses: what tells early that a sparse model goes wrong, where losses and recall tell late.

Between two lines of the logs all vectors of the training batches count, on all processes:

    train/active_terms_text, _image    terms above 0 of a vector, on average
    train/dead_terms_text, _image      terms that no vector had
    train/top_term_text, _image        fraction of the vectors that have the most used term
    train/flops_per_pair               terms that a caption and an image share, on average: the postings that a query
                                       touches per document of the index (FLOPS of SPLADE, Formal et al., SIGIR 2021)

The ten most used terms go into `terms.csv` of the run directory and, as text, into TensorBoard. Costs one comparison
and one sum over the (B, V) vectors of a step.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from lexlip.utils.distributed import sum_over_ranks

log = logging.getLogger(__name__)

SIDES = ("text", "image")
TOP = 10
FILE = "terms.csv"
NEARLY_NONE = 1.0  # active terms of a vector, on average
NEARLY_ALL = 0.5  # of the vocabulary


class TermCounts:
    """How often each term was above 0, per side, since the last `taken`."""

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}  # (V,) int64 of each side
        self.rows = 0

    @torch.no_grad()
    def add(self, vectors: dict[str, Tensor]) -> None:
        """Take (B, V) vectors "text" and "image" along; others are passed over."""
        for side in SIDES:
            if side in vectors:
                active = (vectors[side] > 0).sum(0)
                self.counts[side] = self.counts[side] + active if side in self.counts else active
                self.rows += len(vectors[side]) if side == SIDES[0] else 0

    @torch.no_grad()
    def taken(self) -> dict[str, Tensor]:
        """(V,) fraction of all processes' vectors that have each term, per side, and begin anew; {} without any.

        Every process must call it at the same step.
        """
        counts, rows = self.counts, self.rows
        self.counts, self.rows = {}, 0
        if not counts:
            return {}
        total = sum_over_ranks(torch.tensor(float(rows), device=counts[SIDES[0]].device))
        return {side: sum_over_ranks(counts[side].float()) / total for side in SIDES}


def summary(fractions: dict[str, Tensor]) -> dict[str, float]:
    """What is logged of (V,) fractions "text" and "image"."""
    values = {}
    for side, fraction in fractions.items():
        values[f"train/active_terms_{side}"] = float(fraction.sum())
        values[f"train/dead_terms_{side}"] = float((fraction == 0).sum())
        values[f"train/top_term_{side}"] = float(fraction.max())
    values["train/flops_per_pair"] = float(fractions["text"] @ fractions["image"])
    return values


def alarm(side: str, active: float, vocab: int, pressed: bool) -> str:
    """What is wrong with a side, and what to do; "" if nothing is.

    Args:
        active: terms of a vector, on average.
        pressed: whether the FLOPS loss has its whole weight by now, so that vectors should be sparse.
    """
    if active < NEARLY_NONE:
        return (
            f"{side} vectors have {active:.2f} terms on average: the weights go to 0 and nothing can be found. Lower "
            "flops_weight or learning_rate, or raise flops_warmup; start again from a checkpoint before this"
        )
    if pressed and active > NEARLY_ALL * vocab:
        return (
            f"{side} vectors have {active:,.0f} of {vocab:,} terms on average: they are not sparse, and their index is "
            "large and slow. Raise flops_weight; check that loss_names gives contrastive a weight, and whether the "
            "learning rate has come down already"
        )
    return ""


class Terms(pl.Callback):
    """Logs the above every so many steps; `counts` is what the module adds its vectors to."""

    def __init__(self, every: int, folder: Path):
        self.every, self.file = every, folder / FILE
        self.counts = TermCounts()
        self.steps = 0
        self.latest: dict[str, float] = {}
        self.alarmed: dict[str, str] = {}  # side -> kind of its alarm, told once until it is over

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.term_counts = self.counts  # type: ignore[assignment]  # RetrievalModule's

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.steps += 1
        if self.steps >= self.every:
            self.steps = 0
            fractions = self.counts.taken()
            if fractions:
                self.latest = summary(fractions)
                if trainer.is_global_zero:
                    self._write(trainer, module, {side: fractions[side].cpu() for side in SIDES})
        module.log_dict(self.latest)

    def _write(self, trainer: pl.Trainer, module: Any, fractions: dict[str, Tensor]) -> None:
        tokenizer, step = module.model.tokenizer, module.step_now
        ids = module.term_ids
        begun = self.file.exists()
        with open(self.file, "a", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            if not begun:
                rows.writerow(["step", "side", "rank", "term", "fraction"])
            for side, fraction in fractions.items():
                top = fraction.topk(min(TOP, len(fraction)))
                terms = (top.indices if ids is None else ids.cpu()[top.indices]).tolist()
                words = tokenizer.convert_ids_to_tokens(terms) if tokenizer is not None else list(map(str, terms))
                pairs = list(zip(words, top.values.tolist()))
                rows.writerows([step, side, k, word, f"{value:.4f}"] for k, (word, value) in enumerate(pairs, 1))
                text = ", ".join(f"{word} {100 * value:.0f}%" for word, value in pairs)
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        logger.experiment.add_text(f"top_terms_{side}", text, step)
                active = float(fraction.sum())
                told = alarm(side, active, len(fraction), step > max(module.sparsity.whole_from(side), self.every))
                kind = told and ("none" if active < NEARLY_NONE else "all")
                if kind and kind != self.alarmed.get(side):
                    log.warning("step %d: %s. Most used: %s", step, told, text)
                self.alarmed[side] = kind
