"""Weights in fewer bits, there and back."""

import pytest
import torch

from lexlip.models.towers.packed import packed, unpacked


@pytest.fixture
def state():
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 6, generator=g) * torch.tensor([[1e-3], [1.0], [300.0], [0.0]])
    return {
        "matrix": matrix, "kernel": torch.randn(3, 2, 5, 5, generator=g), "bias": torch.randn(4, generator=g),
        "count": torch.tensor(7), "layer.scale": torch.rand(4, 4, generator=g), "ids": torch.arange(6).view(2, 3),
        "turned": torch.randn(5, 3, generator=g).T,
    }  # fmt: skip


@pytest.mark.parametrize("storage", ["full", "half", "int8"])
def test_what_is_packed_is_unpacked(state, storage):
    stored = packed(state, storage)
    assert all(value.is_contiguous() for value in stored.values())
    found = unpacked(stored)
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        if storage == "full" or not value.is_floating_point():
            assert torch.equal(found[name], value), name
        elif storage == "half" or value.ndim < 2:
            assert torch.equal(found[name], value.half().float()), name
        else:  # half a step of each output channel's own scale, which is itself in 16 bits
            rows, got = value.flatten(1), found[name].flatten(1)
            step = rows.abs().amax(1, keepdim=True) / 127
            assert ((rows - got).abs() <= 0.57 * step + 1e-6).all(), name


def test_bytes_of_each(state):
    size = {
        kind: sum(v.numel() * v.element_size() for v in packed(state, kind).values())
        for kind in ("full", "half", "int8")
    }
    assert size["int8"] < 0.7 * size["half"] < 0.4 * size["full"]
