"""From the tokens of one tokenizer to the word pieces of another, by the characters that both have of the text.

B batch, S tokens of the tower, T word pieces of the lexicon, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def overlap_mean(states: Tensor, tokens: Tensor, real: Tensor, pieces: Tensor) -> Tensor:
    """Mean states of the tokens that share a character with each word piece.

    Args:
        states: (B, S, D) of the tokens.
        tokens: (B, S, 2) first character and the one after the last.
        real: (B, S) bool, False at padding and special tokens.
        pieces: (B, T, 2) as `tokens`.

    Returns:
        (B, T, D). A word piece none of whose characters the tower's tokenizer kept, such as a full stop that SigLIP
        drops, has the mean of all real tokens; where there are none, 0.
    """
    starts = torch.maximum(pieces[:, :, None, 0], tokens[:, None, :, 0])
    ends = torch.minimum(pieces[:, :, None, 1], tokens[:, None, :, 1])
    shared = (starts < ends) & real[:, None]  # (B, T, S)
    shared |= ~shared.any(2, keepdim=True) & real[:, None]
    weights = shared.to(states.dtype)
    return weights @ states / weights.sum(2, keepdim=True).clamp(min=1)


def find_offsets(text: str, surfaces: Sequence[str]) -> list[tuple[int, int]]:
    """Where each token's text stands, for tokenizers that do not tell; (0, 0) for one that is not found.

    Upper and lower case count as equal. Tokens are looked for from left to right, each after the one before.
    """
    lowered, place, found = lower(text), 0, []
    for surface in surfaces:
        wanted = lower(surface.strip())
        start = lowered.find(wanted, place) if wanted else -1
        if start < 0:
            found.append((0, 0))
        else:
            place = start + len(wanted)
            found.append((start, place))
    return found


def lower(text: str) -> str:
    """Lower case by characters, so that each keeps its place."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def surface(token: str) -> str:
    """A token's text, without its tokenizer's marks of spaces, ends and insides of words."""
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").removesuffix("</w>").removeprefix("##")
