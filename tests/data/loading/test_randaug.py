"""Each of ViLT's operations against a formula on its pixels, and how they are drawn."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lexlip_data.loading import randaug
from lexlip_data.loading.randaug import OPERATIONS, vilt_randaug
from lexlip_data.loading.rng import isolated
from lexlip_data.loading.transforms import build_pixels

PIXELS = np.random.default_rng(0).integers(20, 200, (60, 70, 3), dtype=np.uint8)


def grey(pixels):
    """ITU-R 601-2, as Pillow rounds it."""
    weights = np.array([19595, 38470, 7471])
    return (pixels.astype(np.int64) @ weights + 0x8000) >> 16


def blend(base, pixels, factor):
    return np.clip(base + factor * (pixels.astype(np.float64) - base), 0, 255)


def moved(pixels, source):
    """The pixel at source(x, y), the nearest to its middle; black outside."""
    out = np.zeros_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            column, row = (int(np.floor(value)) for value in source(x + 0.5, y + 0.5))
            if 0 <= column < pixels.shape[1] and 0 <= row < pixels.shape[0]:
                out[y, x] = pixels[row, column]
    return out


def stretched(pixels):
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    return (pixels - low) * 255 / (high - low)


def equalized(pixels):
    """Each channel by its cumulated histogram, in steps of all but the last level's pixels / 255."""
    out = np.empty_like(pixels)
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = (step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step
        out[..., channel] = np.clip(table, 0, 255)[pixels[..., channel]]
    return out


def smoothed(pixels):
    """3 x 3, the middle five times as heavy; the border stays."""
    out, inner = pixels.astype(np.float64), 0
    for dy in range(3):
        for dx in range(3):
            weight = 5 if dy == dx == 1 else 1
            inner = inner + weight / 13 * pixels[dy : dy + pixels.shape[0] - 2, dx : dx + pixels.shape[1] - 2]
    out[1:-1, 1:-1] = np.floor(inner + 0.5)
    return out


def rotated(pixels, degrees):
    """Counter-clockwise about the middle."""
    angle, height, width = np.radians(degrees), *pixels.shape[:2]

    def source(x, y):
        x, y = x - width / 2, y - height / 2
        return (
            np.cos(angle) * x - np.sin(angle) * y + width / 2,
            np.sin(angle) * x + np.cos(angle) * y + height / 2,
        )

    return moved(pixels, source)


FORMULAS = {  # name: strength at magnitude 9, the pixels that follow, and by how much one may be off
    "AutoContrast": (0.3, stretched, 1),
    "Equalize": (0.3, equalized, 0),
    "Rotate": (9, lambda p: rotated(p, 9), 0),
    "Posterize": (1.2, lambda p: p & 128, 0),
    "Solarize": (76.8, lambda p: np.where(p < 76.8, p, 255 - p), 0),
    "SolarizeAdd": (
        33, lambda p: (lambda q: np.where(q < 128, q, 255 - q))(np.minimum(255, p.astype(int) + 33)), 0,
    ),
    "Color": (0.64, lambda p: blend(grey(p)[..., None], p, 0.64), 1),
    "Contrast": (0.64, lambda p: blend(int(grey(p).mean() + 0.5), p, 0.64), 1),
    "Brightness": (0.64, lambda p: 0.64 * p, 1),
    "Sharpness": (0.64, lambda p: blend(smoothed(p), p, 0.64), 1),
    "ShearX": (0.09, lambda p: moved(p, lambda x, y: (x + 0.09 * y, y)), 0),
    "ShearY": (0.09, lambda p: moved(p, lambda x, y: (x, y + 0.09 * x)), 0),
    "TranslateX": (30, lambda p: moved(p, lambda x, y: (x + 30, y)), 0),
    "TranslateY": (30, lambda p: moved(p, lambda x, y: (x, y + 30)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_an_operation_does_what_its_formula_says(name):
    strength, formula, off = FORMULAS[name]
    operation = OPERATIONS[name]
    assert operation.strength == pytest.approx(strength)
    given = np.asarray(operation.apply(Image.fromarray(PIXELS), operation.strength)).astype(float)
    difference = np.abs(given - formula(PIXELS))
    # Where a source lies between two pixels, rounding may take the other one.
    edges = 0.005 if name in ("Rotate", "ShearX", "ShearY") else 0
    assert (difference > off).any(axis=2).mean() <= edges, difference.max()


def test_the_list_is_vilts():
    assert list(OPERATIONS) == list(FORMULAS) and len(OPERATIONS) == 14
    assert {name for name, operation in OPERATIONS.items() if operation.signed} == {
        "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY",
    }  # fmt: skip


def test_two_operations_are_drawn_with_replacement_and_a_sign_of_even_odds(monkeypatch):
    calls = []

    def noted(name):
        return lambda image, strength: calls.append((name, strength)) or image

    listed = {name: operation._replace(apply=noted(name)) for name, operation in OPERATIONS.items()}
    monkeypatch.setattr(randaug, "OPERATIONS", listed)
    random.seed(0)
    for _ in range(2000):
        vilt_randaug(Image.new("RGB", (2, 2)))
    counts = Counter(name for name, _ in calls)
    assert len(calls) == 4000 and set(counts) == set(OPERATIONS)
    assert all(4000 / 14 - 80 < count < 4000 / 14 + 80 for count in counts.values())
    assert any(calls[at][0] == calls[at + 1][0] for at in range(0, 4000, 2))
    signs = Counter(strength > 0 for name, strength in calls if name == "ShearX")
    assert set(signs) == {True, False} and min(signs.values()) > 90
    assert all(strength > 0 for name, strength in calls if not OPERATIONS[name].signed)


def test_it_comes_before_the_resize_so_that_it_counts_in_the_image_s_own_pixels(monkeypatch):
    monkeypatch.setattr(randaug, "OPERATIONS", {"TranslateX": OPERATIONS["TranslateX"]._replace(signed=False)})
    image = Image.new("RGB", (240, 120), "white")
    with isolated(1):
        pixels = np.asarray(build_pixels("vit_randaug", 60)(image)).transpose(1, 2, 0)
    # 2 x 30 of 240 pixels are black at the right; the middle square has 120 of them from 60 to 180, all white.
    assert pixels[:, 2:-2].min() == 255
    with isolated(1):
        whole = np.asarray(vilt_randaug(image))
    assert not whole[:, 180:].any() and whole[:, :180].all()
