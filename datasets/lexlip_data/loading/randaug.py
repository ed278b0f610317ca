"""ViLT's RandAugment, which the authors trained with: two of 14 operations, magnitude 9 of 30 (Cubuk et al., 2020).

Made of Pillow's own functions on an RGB image of its own size, before it is resized: translations are in its pixels.
Draws from Python's generator. Costs some milliseconds for an image of COCO.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

COUNT, MAGNITUDE, MOST = 2, 9, 30  # operations per image; strength of each, of so much
THRESHOLD = 128  # at which SolarizeAdd inverts


class Operation(NamedTuple):
    """What it does with a strength between `low` and `high`; a signed one goes either way."""

    apply: Callable[[Image.Image, float], Image.Image]
    low: float
    high: float
    signed: bool = False

    @property
    def strength(self) -> float:
        """At `MAGNITUDE`."""
        return self.low + (self.high - self.low) * MAGNITUDE / MOST


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """The pixel at (a x + b y + c, d x + e y + f), the nearest one; black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    """Brighter by `add`, then what reaches the threshold inverted."""
    brighter = [min(255, int(value + add)) for value in range(256)]
    return image.point([value if value < THRESHOLD else 255 - value for value in brighter] * len(image.getbands()))


OPERATIONS = {
    "AutoContrast": Operation(lambda image, _: ImageOps.autocontrast(image), 0, 1),
    "Equalize": Operation(lambda image, _: ImageOps.equalize(image), 0, 1),
    "Rotate": Operation(lambda image, v: image.rotate(v), 0, 30, signed=True),  # degrees
    "Posterize": Operation(lambda image, v: ImageOps.posterize(image, max(1, int(v))), 0, 4),  # bits that are kept
    "Solarize": Operation(lambda image, v: ImageOps.solarize(image, math.ceil(v)), 0, 256),  # inverted from here on
    "SolarizeAdd": Operation(_solarize_add, 0, 110),
    "Color": Operation(lambda image, v: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    "Contrast": Operation(lambda image, v: ImageEnhance.Contrast(image).enhance(v), 0.1, 1.9),
    "Brightness": Operation(lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    "Sharpness": Operation(lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
    "ShearX": Operation(lambda image, v: _moved(image, 1, v, 0, 0, 1, 0), 0, 0.3, signed=True),
    "ShearY": Operation(lambda image, v: _moved(image, 1, 0, 0, v, 1, 0), 0, 0.3, signed=True),
    "TranslateX": Operation(lambda image, v: _moved(image, 1, 0, v, 0, 1, 0), 0, 100, signed=True),  # pixels
    "TranslateY": Operation(lambda image, v: _moved(image, 1, 0, 0, 0, 1, v), 0, 100, signed=True),
}


def vilt_randaug(image: Image.Image) -> Image.Image:
    """An RGB image after two operations drawn with replacement, each of the same size as before."""
    for operation in random.choices(list(OPERATIONS.values()), k=COUNT):
        flipped = operation.signed and random.random() > 0.5
        image = operation.apply(image, -operation.strength if flipped else operation.strength)
    return image
