"""What a BERT needs for long texts: corner tokens (LoTLIP, Wu et al., 2024, sec. 3.3) and stretched positions.

Corner tokens are new vocabulary entries after [CLS], each of which reads a long text for itself. The rule: [CLS] and
each corner attend to themselves and to all word pieces, never to one another; word pieces attend to word pieces and to
[CLS], never to a corner. So nothing but a corner's own state depends on the corners, and where no corner's state is
wanted they are left out: what remains of them is that the word pieces stand `count` positions later.

B batch, L tokens without corners, C corners, P positions, D width.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

KEPT_POSITIONS = 20  # the ones that short captions have trained best stay as they are


def insert_corners(ids: Tensor, first: int, count: int) -> Tensor:
    """(B, L) token ids to (B, L + C) with the corners `first`, `first + 1`, ... after [CLS]."""
    corners = torch.arange(first, first + count, device=ids.device, dtype=ids.dtype).expand(len(ids), count)
    return torch.cat([ids[:, :1], corners, ids[:, 1:]], dim=1)


def corner_mask(mask: Tensor, count: int) -> Tensor:
    """Who attends to whom, by the rule above.

    Args:
        mask: (B, L) of [CLS] and the word pieces, 0 at padding.
        count: C.

    Returns:
        (B, L + C, L + C) in the mask's dtype; [b, i, j] is 1 where position i attends to position j.
    """
    position = torch.arange(mask.shape[1] + count, device=mask.device)
    head = position <= count  # [CLS] and the corners
    to_itself = head[:, None] & (position[:, None] == position)
    to_cls = ~head[:, None] & (position == 0)
    present = F.pad(mask[:, 1:], (count + 1, 0)) != 0
    return (present[:, None, :] | to_itself | to_cls).to(mask.dtype)


def corner_weights(corners: Tensor, words: Tensor) -> Tensor:
    """(B, C, D) states of corners and (B, L, D) of word pieces to (B, C, L): how much of each piece a corner takes.

    A softmax over the corners of scaled dot products. The weights of a word piece add up to 1, so a long text is
    divided among its corners and nothing of it is lost.
    """
    return (corners @ words.transpose(1, 2) / words.shape[-1] ** 0.5).softmax(1)


def stretch_positions(table: Tensor, rows: int) -> Tensor:
    """(P, D) trained positions to (rows, D) for longer texts (Long-CLIP, Zhang et al., ECCV 2024, sec. 3.1).

    The first 20 (of a short table its first half) stay as they are; the others lie linearly between theirs.
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
