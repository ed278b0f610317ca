"""What one request may cost, and how many are served at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lexlip.errors import ConfigError
from lexlip_data.sources.images import MAX_PIXELS

MAX_JSON = 1 << 20  # bytes; the largest bag of words that an index takes needs less than half
_PARSED = 8 << 20  # bytes that a JSON body's fields take, once checked
_PARSING = 64 << 20  # bytes that a JSON body may become while it is looked at; one at a time
_DECODER = 64 << 20  # bytes of a decoding process that has nothing to do
_JPEG = 8 << 20  # bytes of the largest JPEG that is sent


@dataclass(frozen=True)
class Limits:
    """The service's memory is bounded by these, as `memory` says."""

    max_body: int = 16 << 20  # bytes of a request's body, counted as they come in; JSON has MAX_JSON besides
    max_pixels: int = MAX_PIXELS  # of an image, by its header, before anything is decoded
    max_file: int = 64 << 20  # bytes of a photo's file that is shown
    max_k: int = 1000  # results of one request
    concurrency: int = 64  # texts that are worked on at once, as many images, photos, videos, suggestions; more: 503
    head_seconds: float = 10.0  # in which a request's head must arrive, and an answer be taken
    body_seconds: float = 10.0  # in which a body must arrive
    reload_seconds: float = 1.0  # between two looks at the index's folder
    threads: int = os.cpu_count() or 1  # that search
    decoders: int = 1  # processes that decode images
    decode_seconds: float = 5.0  # that one image may take
    decode_memory: int = 2 << 30  # bytes that one image may take, on Linux

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name}={value}: it must be above 0")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels={self.max_pixels}: no image above {MAX_PIXELS} is ever decoded")

    def memory(self) -> int:
        """Bytes that requests can take at most, all processes together, besides the model and the searches.

        A body is there twice while a form is taken apart; texts have places of their own. A photo's file is there twice
        while it is handed to its decoder, and only as many files as there are decoders.
        """
        images = self.concurrency * 2 * self.max_body
        texts = self.concurrency * (2 * min(MAX_JSON, self.max_body) + _PARSED) + _PARSING
        photos = self.concurrency * _JPEG + self.decoders * 2 * self.max_file
        return images + texts + photos + self.decoders * (_DECODER + self.decode_memory)
