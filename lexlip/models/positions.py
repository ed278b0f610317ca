"""Position tables at other grid sizes, resampled in two dimensions.

A tower trained on a 14 x 14 grid sees 7 x 7 patches at half size and 24 x 24 at 384 px. An offset of d patches on a
grid of n spans the same part of the image as d * 14 / n patches on the trained grid, so the table is read there,
linearly between its entries. Half the grid thus reads every second entry exactly.
"""

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, gen_relative_position_index
from torch import Tensor, nn

from lexlip.ops.attention import biased_attention

REL_POS = ("2d", "official")  # ways to read a table at another grid
CLS_ROWS = 3  # of a BEiT table: CLS to patch, patch to CLS, CLS to CLS
Grid = tuple[int, int]  # height and width in patches


def resample_relative_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A BEiT relative-position table of the trained grid `old` = (H, W) for the grid `new` = (h, w); differentiable.

    From ((2H-1)(2W-1) + 3, heads) to ((2h-1)(2w-1) + 3, heads); the last three rows belong to CLS and are kept.
    """
    return _resample(table, *(_offset_weights(n, o).to(table) for n, o in zip(new, old, strict=True)))


def stretch_as_official(table: Tensor, new: Grid) -> Tensor:
    """A BEiT table for a larger grid, as the official LexLIP code reads it at 384 px; the same sizes as above.

    The flattened table, CLS rows included, is stretched as one line, by a scale that aims a tenth of a row too far, so
    that rounding down gives the right length. CLS is then read at the numbers that its rows had before, so in the
    middle of the line: here those three rows are put where CLS rows belong.
    """
    rows, old = (2 * new[0] - 1) * (2 * new[1] - 1) + CLS_ROWS, len(table)
    line = F.interpolate(table.T[None], scale_factor=(rows + 0.1) / old, mode="linear", align_corners=False)[0].T
    return torch.cat([line[:-CLS_ROWS], line[old - CLS_ROWS : old]])


def _offset_weights(new: int, old: int) -> Tensor:
    """(2 new - 1, 2 old - 1) linear interpolation weights between relative offsets."""
    position = (torch.arange(1 - new, new, dtype=torch.float64) * old / new + old - 1).clamp(0, 2 * old - 2)
    return (1 - (position[:, None] - torch.arange(2 * old - 1)).abs()).clamp(min=0).float()


def _resample(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    grid = table[:-CLS_ROWS].view(rows.shape[1], columns.shape[1], -1)
    grid = torch.einsum("yr,xc,rch->yxh", rows, columns, grid)
    return torch.cat([grid.flatten(0, 1), table[-CLS_ROWS:]])


class GridBias(nn.Module):
    """The relative-position biases of all layers of a BEiT at once, for the grid that is being encoded.

    It replaces timm's bias that all layers share: timm asks for it once per forward pass and hands it to every block,
    also to one whose activations are computed a second time. One gather for all layers, instead of one each, is also
    one scatter in the backward pass. The attention layers, in order, become `GridAttention`s.
    """

    def __init__(self, layers: list[Attention]):
        super().__init__()
        self.layers = layers  # a plain list: the weights stay the layers' own
        height, width = layers[0].window_size
        self.trained: Grid = (height, width)
        self.grid = self.trained  # set before each forward pass, and so is
        self.rel_pos = "2d"  # one of `REL_POS`
        self._constants: dict[tuple[Grid, str, str], tuple[Tensor, ...]] = {}
        for number, layer in enumerate(layers):
            layer.__class__ = GridAttention
            layer.number = number  # type: ignore[assignment]  # of a GridAttention now

    def forward(self) -> tuple[Tensor, ...]:
        """One (1, heads, L, L) bias per layer, L = grid height x width + 1."""
        # The layers as further heads of one table.
        table = torch.cat([layer.relative_position_bias_table for layer in self.layers], dim=1)
        rows, columns, index = self._constants_of_grid(table.device)
        if self.grid != self.trained and self.rel_pos == "2d":
            table = _resample(table, rows.to(table.dtype), columns.to(table.dtype))
        elif self.grid != self.trained and not self._cropped:
            table = stretch_as_official(table, self.grid)
        biases = F.embedding(index, table).T  # (layers * heads, L * L)
        device = table.device.type
        if torch.is_autocast_enabled(device):  # once, not in every layer's attention; after the gather, so that the
            biases = biases.to(torch.get_autocast_dtype(device))  # pairs of one offset add up in the table's precision
        length = self.grid[0] * self.grid[1] + 1
        return biases.reshape(len(self.layers), 1, -1, length, length).unbind(0)

    @property
    def _cropped(self) -> bool:
        """Whether the official code's way is to cut the trained grid's bias to the first rows and columns."""
        return self.rel_pos == "official" and self.grid[0] * self.grid[1] < self.trained[0] * self.trained[1]

    def _constants_of_grid(self, device: torch.device) -> tuple[Tensor, ...]:
        """Interpolation weights of rows and columns, and the (L * L,) rows of the table, on the device."""
        key = (self.grid, self.rel_pos, str(device))
        if key not in self._constants:
            with torch.inference_mode(False):  # kept for training, even if an evaluation asks first
                weights = [_offset_weights(n, o) for n, o in zip(self.grid, self.trained, strict=True)]
                length = self.grid[0] * self.grid[1] + 1
                index = gen_relative_position_index(self.trained if self._cropped else self.grid)[:length, :length]
                parts = (*weights, index.flatten())
                self._constants[key] = tuple(part.to(device) for part in parts)
        return self._constants[key]


class GridAttention(Attention):
    """timm's BEiT attention with its layer's part of a `GridBias`; scaled-dot-product attention takes it as mask."""

    number: int

    def forward(  # type: ignore[override]  # timm hands on what `GridBias` gives
        self, x: Tensor, shared_rel_pos_bias: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """(B, L, width) to the same; without biases, those of the trained grid."""
        bias = self._get_rel_pos_bias() if shared_rel_pos_bias is None else shared_rel_pos_bias[self.number]
        parts: list[Tensor] = [part for part in (self.q_bias, self.k_bias, self.v_bias) if part is not None]
        qkv_bias = torch.cat(parts) if parts else None
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, d)
        if self.fused_attn:
            x = biased_attention(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        else:
            x = self.attn_drop((q * self.scale @ k.mT + bias).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
