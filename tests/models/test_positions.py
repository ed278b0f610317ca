"""Position tables at other grid sizes against reading them offset by offset."""

import pytest
import torch
from timm.models.beit import Attention

from lexlip.models.positions import GridBias, resample_relative_table, stretch_as_official


def table(grid, heads=3, seed=0):
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    return torch.randn(rows, heads, generator=torch.Generator().manual_seed(seed))


def at(values, grid, dy, dx):
    """The entry of an offset, linearly between whole offsets; a double loop over the four neighbours."""
    plane = values[:-3].view(2 * grid[0] - 1, 2 * grid[1] - 1, -1)
    y = min(max(dy + grid[0] - 1, 0.0), 2.0 * grid[0] - 2)
    x = min(max(dx + grid[1] - 1, 0.0), 2.0 * grid[1] - 2)
    total = torch.zeros(values.shape[1])
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            weight = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            total += weight * plane[row, column]
    return total


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (2, 2)), ((4, 4), (6, 6)), ((3, 5), (4, 2)), ((2, 2), (7, 7)), ((4, 4), (1, 1))]
)
def test_every_offset_is_read_where_it_lies_in_the_image(old, new):
    values = table(old)
    result = resample_relative_table(values, old, new)
    assert result.shape == ((2 * new[0] - 1) * (2 * new[1] - 1) + 3, 3)
    plane = result[:-3].view(2 * new[0] - 1, 2 * new[1] - 1, -1)
    for dy in range(1 - new[0], new[0]):
        for dx in range(1 - new[1], new[1]):
            wanted = at(values, old, dy * old[0] / new[0], dx * old[1] / new[1])
            torch.testing.assert_close(plane[dy + new[0] - 1, dx + new[1] - 1], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(result[-3:], values[-3:])


def test_half_the_grid_reads_every_second_offset_exactly():
    values = table((14, 14), heads=2)
    half = resample_relative_table(values, (14, 14), (7, 7))[:-3].view(13, 13, 2)
    assert torch.equal(half, values[:-3].view(27, 27, 2)[1:-1:2, 1:-1:2])


def test_the_same_grid_is_the_table_itself():
    values = table((3, 4))
    assert torch.equal(resample_relative_table(values, (3, 4), (3, 4)), values)


def test_a_grid_of_one():
    values = table((1, 1))
    grown = resample_relative_table(values, (1, 1), (2, 3))
    assert torch.equal(grown[:-3], values[:1].expand(15, 3))
    assert torch.equal(grown[-3:], values[-3:])


def test_gradient_reaches_the_table():
    values = table((4, 4)).requires_grad_()
    resample_relative_table(values, (4, 4), (2, 2)).sum().backward()
    plane = values.grad[:-3].view(7, 7, 3)
    assert torch.equal(values.grad[-3:], torch.ones(3, 3))
    assert plane.sum() == 9 * 3
    assert plane[::2].abs().sum() == 0  # only the offsets -2, 0 and 2 are read
    values.grad = None
    resample_relative_table(values, (4, 4), (7, 7)).sum().backward()
    assert (values.grad[:-3].view(7, 7, 3)[1:-1, 1:-1] > 0).all()


def test_attention_bias_of_a_small_grid_by_hand():
    """Patch pairs of a 2 x 2 grid have the bias of twice their offset on the 4 x 4 grid."""
    layers = [Attention(dim=4, num_heads=2, qkv_bias=True, window_size=(4, 4)) for _ in range(2)]
    with torch.no_grad():
        layers[1].relative_position_bias_table.copy_(table((4, 4), heads=2))
    values = layers[1].relative_position_bias_table
    plane = values[:-3].view(7, 7, 2)
    biases = GridBias(layers)
    biases.grid = (2, 2)
    nothing, bias = biases()
    assert not nothing.any()
    assert bias.shape == (1, 2, 5, 5)
    for one in range(4):
        for two in range(4):
            dy, dx = one // 2 - two // 2, one % 2 - two % 2
            assert torch.equal(bias[0, :, one + 1, two + 1], plane[3 + 2 * dy, 3 + 2 * dx])
    assert torch.equal(bias[0, :, 0, 1:], values[-3][:, None].expand(2, 4))  # CLS to patch
    assert torch.equal(bias[0, :, 1:, 0], values[-2][:, None].expand(2, 4))  # patch to CLS
    assert torch.equal(bias[0, :, 0, 0], values[-1])


def test_the_official_bias_of_a_smaller_grid_is_cut_out():
    """The first rows and columns of the trained grid's bias, whatever pairs of patches they belong to."""
    layer = Attention(16, num_heads=2, window_size=(4, 4))
    torch.nn.init.normal_(layer.relative_position_bias_table)
    bias = GridBias([layer])
    (whole,) = bias()
    bias.grid = (2, 2)
    (fitting,) = bias()
    bias.rel_pos = "official"
    (cut,) = bias()
    assert torch.equal(cut, whole[..., :5, :5]) and not torch.allclose(cut, fitting)
    bias.rel_pos = "2d"
    assert torch.equal(bias()[0], fitting)


@pytest.mark.parametrize("side", [5, 6])
def test_the_official_bias_of_a_larger_grid_is_that_of_the_stretched_table(side):
    layer = Attention(16, num_heads=2, window_size=(4, 4))
    torch.nn.init.normal_(layer.relative_position_bias_table)
    bias = GridBias([layer])
    bias.grid, bias.rel_pos = (side, side), "official"
    other = Attention(16, num_heads=2, window_size=(side, side))
    other.relative_position_bias_table.data = stretch_as_official(layer.relative_position_bias_table, (side, side))
    torch.testing.assert_close(bias()[0], GridBias([other])()[0])
    bias()[0].sum().backward()
    assert layer.relative_position_bias_table.grad.abs().sum() > 0
