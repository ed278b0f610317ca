"""Position tables at other grid sizes, resampled in two dimensions.

A tower trained on a 14 x 14 grid sees 7 x 7 patches at half size and 24 x 24 at 384 px. An offset of d patches on a
grid of n spans the same part of the picture as d * 14 / n patches on the trained grid, so the table is read there,
linearly between its entries. Half the grid thus reads every second entry exactly.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.models.beit import Attention, gen_relative_position_index
from torch import Tensor

CLS_ROWS = 3  # of a BEiT table: CLS to patch, patch to CLS, CLS to CLS


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for training, even if an evaluation asks first
def _offset_weights(new: int, old: int, device: torch.device) -> Tensor:
    """(2 new - 1, 2 old - 1) linear interpolation weights between relative offsets."""
    offsets = torch.arange(-(new - 1), new, dtype=torch.float64) * old / new
    place = (offsets + old - 1).clamp(0, 2 * old - 2)
    low = place.floor().long().clamp(max=max(2 * old - 3, 0))
    share = (place - low).float()
    weights = torch.zeros(2 * new - 1, 2 * old - 1)
    rows = torch.arange(2 * new - 1)
    weights[rows, low] = 1 - share
    if old > 1:
        weights[rows, low + 1] += share
    return weights.to(device)


def resample_relative_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A BEiT relative-position table for another grid; differentiable.

    Args:
        table: ((2H-1)(2W-1) + 3, heads) for the grid `old` = (H, W); the last three rows belong to CLS and are kept.
        old: trained grid in patches.
        new: wanted grid in patches.

    Returns:
        ((2h-1)(2w-1) + 3, heads) for the grid `new` = (h, w).
    """
    if old == new:
        return table
    grid = table[:-CLS_ROWS].view(2 * old[0] - 1, 2 * old[1] - 1, -1)
    rows = _offset_weights(new[0], old[0], table.device).to(table.dtype)
    columns = _offset_weights(new[1], old[1], table.device).to(table.dtype)
    grid = torch.einsum("yr,xc,rch->yxh", rows, columns, grid)
    return torch.cat([grid.flatten(0, 1), table[-CLS_ROWS:]])


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _index(grid: tuple[int, int], device: torch.device) -> Tensor:
    return gen_relative_position_index(grid).to(device)


class GridAttention(Attention):
    """timm's BEiT attention with the relative-position bias of the grid that is being encoded.

    An attention layer becomes one by having its class set; `grid` is set before each pass.
    """

    grid: tuple[int, int] | None = None

    def _get_rel_pos_bias(self) -> Tensor:
        trained = tuple(self.window_size)
        if self.grid is None or self.grid == trained:
            return super()._get_rel_pos_bias()
        table = resample_relative_table(self.relative_position_bias_table, trained, self.grid)
        index = _index(self.grid, table.device)
        bias = table[index.view(-1)].view(*index.shape, -1)  # (L, L, heads)
        return bias.permute(2, 0, 1).contiguous().unsqueeze(0)
