"""Whether a tokenizer knows the words of some captions: captions that are all [UNK] are all the same to a model.

Costs one call of the tokenizer for a few hundred captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lexlip_data.errors import BrokenSample
from lexlip_data.sources.source import Source

SAMPLE = 512  # captions, evenly spaced
MOST = 0.25  # of the word pieces that may be unknown


def unknown_ratio(captions: Sequence[str], tokenizer) -> float:
    """The ratio of unknown tokens to all tokens of the captions, from 0 to 1; 0 where a tokenizer knows everything."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not captions:
        return 0.0
    pieces = tokenizer(list(captions), add_special_tokens=False, truncation=True, max_length=512)["input_ids"]
    total = sum(map(len, pieces))
    return sum(row.count(unknown) for row in map(list, pieces)) / total if total else 0.0


def unknown_warning(captions: Sequence[str], tokenizer, origin: str) -> str | None:
    """What to say where more than MOST of the captions' tokens are unknown; None otherwise.

    Args:
        origin: of the captions, for the message.
    """
    ratio = unknown_ratio(captions, tokenizer)
    if ratio <= MOST:
        return None
    return (
        f"{origin}: {ratio:.0%} of the captions' tokens are unknown to the tokenizer ({tokenizer.unk_token}), which "
        "makes different captions equal; make a vocabulary of these captions with datasets/convert.py vocab, or give "
        "another tokenizer"
    )


def sample_captions(sources: Sequence[Source]) -> list[str]:
    """Up to SAMPLE usable captions of some sources, evenly spaced; one per image."""
    captions = []
    for source in sources:
        for i in (
            np.unique(np.linspace(0, len(source) - 1, SAMPLE // len(sources) + 1).astype(int)) if len(source) else ()
        ):
            try:
                captions += [source.caption(int(i), 0)] if source.caption_counts[i] else []
            except BrokenSample:
                continue
    return captions[:SAMPLE]
