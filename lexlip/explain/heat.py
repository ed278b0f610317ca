"""Heat maps as an image: what a word says nothing of grows dark, its strongest patch has a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lexlip.models.attribution import Box

SIDE = 300  # pixels of the longer side of a photo
GAP, LINE = 12, 30
DARKEST = 0.72
PAPER, INK = (255, 255, 255), (29, 33, 31)


def shaded(image: Image.Image, weights: np.ndarray, box: Box) -> Image.Image:
    """An image under one heat map.

    Args:
        weights: (H, W), 0 or more, of the grid's cells.
        box: the part of the image that the grid covers; all outside of it is dark.
    """
    most = float(weights.max())
    heat = weights / most if most > 0 else np.zeros_like(weights)
    left, top, right, bottom = (
        round(edge * side) for edge, side in zip(box, (image.width, image.height) * 2, strict=True)
    )
    small = Image.fromarray((heat * 255).round().astype(np.uint8))
    light = Image.new("L", image.size, 0)
    light.paste(small.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    dark = light.point(lambda value: round(255 * (1 - DARKEST * (1 - value / 255))))
    out = Image.composite(image, Image.new("RGB", image.size, (8, 12, 10)), dark)
    if most > 0:
        row, column = np.unravel_index(int(weights.argmax()), weights.shape)
        high, wide = (bottom - top) / weights.shape[0], (right - left) / weights.shape[1]
        corner = left + column * wide, top + row * high
        frame = (corner[0], corner[1], corner[0] + wide - 1, corner[1] + high - 1)
        ImageDraw.Draw(out).rounded_rectangle(frame, 4, outline="white", width=2)
    return out


def figure(image: Image.Image, labels: Sequence[str], maps: np.ndarray, box: Box) -> Image.Image:
    """The image, and once more for each of the labels, side by side.

    Args:
        maps: (N, H, W) weights, one map for each label.
        box: as `shaded`.
    """
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    panels = [image, *(shaded(image, weights, box) for weights in maps)]
    wide, high = image.size
    out = Image.new("RGB", (len(panels) * (wide + GAP) + GAP, high + LINE + GAP), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(15)
    for number, (panel, label) in enumerate(zip(panels, ["", *labels], strict=True)):
        left = GAP + number * (wide + GAP)
        out.paste(panel, (left, GAP))
        draw.text((left, GAP + high + 6), label, INK, font)
    return out
