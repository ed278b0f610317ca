"""What one request may cost, and how many are served at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lexlip.errors import ConfigError
from lexlip_data.sources.images import MAX_PIXELS

MAX_JSON = 1 << 20  # bytes; the largest bag of words that an index takes needs less than half


@dataclass(frozen=True)
class Limits:
    """The service's memory is bounded by these: concurrency x max_body, one decoded image, threads x one search."""

    max_body: int = 16 << 20  # bytes of a request's body, counted as they come in; JSON has MAX_JSON besides
    max_pixels: int = MAX_PIXELS  # of an image, by its header, before anything is decoded
    max_k: int = 1000  # results of one request
    concurrency: int = 64  # requests that are worked on at once; one more is answered 503
    body_seconds: float = 10.0  # in which a body must arrive
    reload_seconds: float = 1.0  # between two looks at the index's folder
    threads: int = os.cpu_count() or 1  # that search

    def __post_init__(self):
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name}={value}: it must be above 0")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels={self.max_pixels}: no image above {MAX_PIXELS} is ever decoded")
