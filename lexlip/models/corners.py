"""Corner tokens: new vocabulary entries after [CLS], each of which reads a long text for itself (LoTLIP, sec. 3.3).

The rule: [CLS] and each corner attend to themselves and to all word pieces, never to one another; word pieces attend
to word pieces and to [CLS], never to a corner. So nothing but a corner's own state depends on the corners, and where
no corner's state is wanted they are left out: what remains of them is that the word pieces stand `count` positions
later.

B batch, L tokens without corners, C corners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """How much of each word piece each corner takes: softmax over the corners of their states' scaled dot products.

    The weights of a word piece add up to 1, so a long text is divided among its corners and nothing of it is lost.

    Args:
        corners: (B, C, D) states.
        words: (B, L, D) states.

    Returns:
        (B, C, L).
    """
    return (corners @ words.transpose(1, 2) / words.shape[-1] ** 0.5).softmax(1)
