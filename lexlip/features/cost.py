"""What caching will take, from a few photos and captions that are tried first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lexlip.errors import FeaturesError
from lexlip.features.data import Pairs
from lexlip.models.towers import ImageTower, TextTower
from lexlip.utils.devices import in_parts
from lexlip_data.errors import BrokenSample
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import Skipped


@dataclass(frozen=True)
class Cost:
    """Seconds of one process like this one, and bytes on disk; printed as one line."""

    photos: int
    captions: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.1f} MB"
        return f"{duration(self.seconds)} for {self.photos:,} photos and {self.captions:,} captions, {size} on disk"


def duration(seconds: float) -> str:
    """Seconds as they are told of what was not measured to the end."""
    return "less than a minute" if seconds < 60 else f"about {seconds / 60:,.0f} min"


class PhotoPixels:
    """Encoded bytes -> what a tower wants of them; all of the photo is decoded, as for images that a model is given."""

    def __init__(self, tower: ImageTower):
        self.transform = tower.transform  # not the tower itself, which a worker would get a copy of

    def __call__(self, data: bytes | memoryview) -> Tensor:
        return self.transform(open_image(data))


def estimate(
    image: ImageTower,
    text: TextTower,
    data: Mapping[str, Pairs],
    batch_size: int,
    workers: int,
    photos: int,
    captions: int,
) -> Cost:
    """Try a few of each, at most a batch and at most one in 20, and count up.

    Args:
        workers: processes that decode photos beside this one.
        photos, captions: how many there are to do.
    """
    largest = max(data.values(), key=len)
    seconds, size = 0.0, 0.0
    if photos:
        decoding, features, size_of_one = _try_photos(image, largest, max(1, min(batch_size, photos // 20)))
        seconds += photos * (max(decoding / workers, features) if workers else decoding + features)
        size += photos * size_of_one
    if captions:
        features, size_of_one = _try_captions(text, largest, max(1, min(batch_size, captions // 20)))
        seconds += captions * features
        size += captions * size_of_one
    return Cost(photos, captions, seconds, int(size))


def _try_photos(tower: ImageTower, pairs: Pairs, count: int) -> tuple[float, float, float]:
    """Seconds of decoding, seconds in the tower, and bytes, of one photo."""
    decode, pixels = PhotoPixels(tower), []
    started = time.perf_counter()
    for number in _spread(len(pairs), count):
        try:
            pixels.append(decode(pairs.image(number)[1]))
        except BrokenSample:
            continue  # it will be listed when its turn comes
    decoding = time.perf_counter() - started
    if not pixels:
        raise FeaturesError(f"none of {count} photos can be read, e.g. {pairs.image_name(0)}")
    batch = torch.stack(pixels)
    with torch.inference_mode():
        tower.features(batch[:1]).cpu()  # the first call of a device or library takes longer
        started = time.perf_counter()
        given = in_parts(tower.features, batch, next(tower.parameters()).device).cpu()
    one = 1 / len(pixels)
    return decoding * one, (time.perf_counter() - started) * one, 2 * given[0].numel() + 40


def _try_captions(tower: TextTower, pairs: Pairs, count: int) -> tuple[float, float]:
    """Seconds and bytes of one caption."""
    wanted = _spread(len(pairs.caption_image), count)
    found = [item for number in wanted for item in pairs.read(number, number + 1)]
    texts = [item[1] for item in found if not isinstance(item, Skipped)]
    if not texts:
        return 0.0, 0.0
    with torch.inference_mode():
        tower.features(texts[:1])
        started = time.perf_counter()
        given = tower.features(texts)
        pieces = int(given.mask.sum())
    seconds = time.perf_counter() - started
    size = pieces * (2 * given.states.shape[2] + 4) + len(texts) * (2 * given.pooled.shape[1] + 20)
    return seconds / len(texts), (size + sum(map(len, texts))) / len(texts)


def _spread(total: int, count: int) -> list[int]:
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist() if total else []
