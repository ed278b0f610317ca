"""What the two trainings of a fit will take, told before anything starts: steps, and minutes by what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lexlip.features.cost import duration
from lexlip.features.data import Pairs
from lexlip_data.sources.skipped import Skipped

# Seconds of a step on one CPU thread with such a batch and so many terms: docs/results/frozen.md, 6,000 photos.
SECONDS = {"dense": 0.2, "contextual": 1.0, "lookup": 1.25}
BATCH, TERMS = 1024, 2776
PER_TOKEN = 0.08  # of such a step, for each token of a photo after the first (its "Patches against their mean")
SAMPLE = 10_000  # captions whose terms are counted


def training_cost(
    plans: Mapping[str, Mapping[str, Any]], pairs: Pairs, tokens: int, lexicon: Any, device: torch.device
) -> str:
    """One line on the trainings that are to come.

    Args:
        plans: config keys of "dense" and "lexicon"; one that is done is left out.
        pairs: the photos and captions of the training.
        tokens: of a photo, as its tower gives them.
        lexicon: fast tokenizer whose word pieces are the terms.
        device: where the training goes.
    """
    told = []
    for head, keys in plans.items():
        seconds = SECONDS[keys["head_text"] if head == "lexicon" else head] * keys["batch_size"] / BATCH
        name = "the dense reference"
        if head == "lexicon":
            terms = count_terms(pairs, lexicon, keys["term_min_count"])
            seconds *= terms / TERMS * (1 + PER_TOKEN * (tokens - 1))
            name = f"the lexicon with about {float(f'{terms:.2g}'):,.0f} terms"
        told.append(f"{keys['max_steps']:,} steps of {name}, {duration(seconds * keys['max_steps'])}")
    speed = f"; {device} takes less" if device.type == "cuda" else ""
    return f"training on {len(pairs):,} photos, on one CPU thread: {', and '.join(told)}{speed}"


def count_terms(pairs: Pairs, lexicon: Any, least: int) -> int:
    """About how many word pieces are in `least` of the captions, from SAMPLE of them."""
    total = len(pairs.caption_image)
    rows = np.unique(np.linspace(0, total - 1, min(SAMPLE, total)).astype(int)).tolist()
    found = [item for row in rows for item in pairs.read(row, row + 1)]
    captions = [item[1] for item in found if not isinstance(item, Skipped)]
    if not captions:
        return 0
    encoded = lexicon.backend_tokenizer.encode_batch_fast(captions, add_special_tokens=False)
    counts = np.bincount([piece for one in encoded for piece in set(one.ids)])
    counts[[number for number in lexicon.all_special_ids if number < len(counts)]] = 0
    return int((counts >= max(1, least * len(captions) / total)).sum())
