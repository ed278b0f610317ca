"""A text tower's tables for a tower with more tokens or longer texts than the one that was trained.

P positions, D width.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

KEPT_POSITIONS = 20  # the ones that short captions have trained best stay as they are


def stretch_positions(table: Tensor, rows: int) -> Tensor:
    """A position table for longer texts (Long-CLIP, Zhang et al., ECCV 2024, sec. 3.1).

    Args:
        table: (P, D) trained positions.
        rows: wanted, at least P.

    Returns:
        (rows, D): the first 20 (of a short table its first half) unchanged, the others linearly between theirs.
    """
    kept = min(KEPT_POSITIONS, len(table) // 2)
    rest = F.interpolate(table[kept:].T[None].float(), size=rows - kept, mode="linear", align_corners=True)
    return torch.cat([table[:kept], rest[0].T.to(table.dtype)])


def fit_text_tables(state: dict[str, Tensor], fresh: dict[str, Tensor], used: int, trained: int | None) -> None:
    """Change a BERT's tables in `state` to the shapes of `fresh`, where they only lack tokens or positions.

    Args:
        state: weights that will be loaded, by names that end in BERT's.
        fresh: the tower's own weights by the same names.
        used: positions that texts will use.
        trained: positions of the table that were trained; None: all of them.
    """
    for name, value in state.items():
        wanted = fresh.get(name)
        if wanted is None or value.ndim != 2 or value.shape[1] != wanted.shape[1]:
            continue
        if name.endswith("embeddings.word_embeddings.weight") and len(value) < len(wanted):
            state[name] = torch.cat([value, wanted[len(value) :].to(value)])
            log.info("%d corner tokens start afresh", len(wanted) - len(value))
        if name.endswith("embeddings.position_embeddings.weight"):
            known = min(trained or len(value), len(value))
            if used > known and len(wanted) == max(used, len(value)):
                state[name] = torch.cat([stretch_positions(value[:known], used), value[used:]])
                log.info("%d text positions stretched to %d", known, used)
