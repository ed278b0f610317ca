"""Corner tokens: new vocabulary entries after [CLS], each of which reads a long text for itself (LoTLIP, sec. 3.3).

The rule: [CLS] and each corner attend to themselves and to all words, never to one another; words attend to words and
to [CLS], never to a corner. So nothing but a corner's own state depends on the corners, and a pass that wants no corner
states leaves them out: what remains of them is that the words stand `count` positions later.

B batch, L tokens without corners, C corners.
"""

from __future__ import annotations

import torch
from torch import Tensor


def insert_corners(ids: Tensor, first: int, count: int) -> Tensor:
    """(B, L) word ids to (B, L + C) with the corners `first`, `first + 1`, ... after [CLS]."""
    corners = torch.arange(first, first + count, device=ids.device, dtype=ids.dtype).expand(len(ids), count)
    return torch.cat([ids[:, :1], corners, ids[:, 1:]], dim=1)


def corner_mask(mask: Tensor, count: int) -> Tensor:
    """Who attends to whom, by the rule above.

    Args:
        mask: (B, L) of [CLS] and the words, 0 at padding.
        count: C.

    Returns:
        (B, L + C, L + C) in the mask's dtype; [b, i, j] is 1 where position i attends to position j.
    """
    rows, length = mask.shape
    words = torch.arange(length + count, device=mask.device) > count
    itself = torch.eye(length + count, device=mask.device, dtype=torch.bool)
    to_cls = torch.zeros_like(itself)
    to_cls[words, 0] = True
    present = torch.cat([mask.new_zeros(rows, count + 1), mask[:, 1:]], dim=1) != 0
    heads_itself = itself & ~words[:, None]
    return (present[:, None, :] | heads_itself | to_cls).to(mask.dtype)


def corner_shares(corners: Tensor, words: Tensor) -> Tensor:
    """How much of each word each corner takes: softmax over the corners of their states' scaled dot products.

    A word's shares add up to 1, so what a long text says is shared out among its corners and nothing of it is lost.

    Args:
        corners: (B, C, D) states.
        words: (B, L, D) states.

    Returns:
        (B, C, L).
    """
    return (corners @ words.transpose(1, 2) / words.shape[-1] ** 0.5).softmax(1)


def word_positions(length: int, count: int, device: torch.device) -> Tensor:
    """(1, L) position numbers of [CLS] and the words when the corners between them are left out."""
    positions = torch.arange(length, device=device)
    return torch.where(positions > 0, positions + count, positions)[None]
