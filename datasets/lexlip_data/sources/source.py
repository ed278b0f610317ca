"""What every source of captioned images offers, however it is stored; and the ids that evaluation compares.

A source is a list of images of one data set and split, each with its captions. It keeps no Python object per
image (offsets in numpy, text and bytes in Arrow buffers), so its memory does not grow in forked workers.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from lexlip_data.errors import BrokenSample
from lexlip_data.sources.skipped import Skipped

MAX_CAPTION = 10_000  # characters; max_text_len never needs more, and a tokenizer takes seconds for a million
MAX_NAME = 4096  # characters of a path or an id, the system's own limit of paths


class Source(Protocol):
    """Images 0..len-1 of one data set and split; an index beyond them raises IndexError."""

    name: str
    split: str
    origin: str  # its file, for messages
    caption_counts: np.ndarray  # captions per image, int64 (images,)
    left_out: list[Skipped]  # rows of its file that are not among its images and captions

    def __len__(self) -> int:
        return len(self.caption_counts)

    def image_id(self, i: int) -> str:
        """Raises BrokenSample if there is none."""

    def image_bytes(self, i: int) -> bytes | memoryview:
        """The encoded image. Raises BrokenImage if there is none."""

    def caption(self, i: int, number: int) -> str:
        """One caption of the image. Raises BrokenSample if it is no text, empty, or longer than MAX_CAPTION."""

    def captions(self, i: int) -> list[str]:
        """All captions of the image. Raises BrokenSample as `caption` does."""
        return [self.caption(i, number) for number in range(int(self.caption_counts[i]))]

    def long_captions(self, i: int) -> list[str]:
        """Long captions of the image; empty where the source has none. Raises BrokenSample if one is no text."""

    def coco_ids(self, i: int) -> tuple[str, list[str]]:
        """COCO's numbers of the image and of its captions; ("", []) where the source has none."""
        return "", []

    def where(self, i: int) -> str:
        """File and row, for messages."""


def locate(ends: np.ndarray, i: int) -> tuple[int, int]:
    """Position i in groups that follow one another and end at `ends` -> (group, position in the group)."""
    k = int(np.searchsorted(ends, i, side="right"))
    return k, i - (int(ends[k - 1]) if k else 0)


def hash_id(name: str, image_id: str) -> int:
    """A stable id in [0, 2**63) of "name/image_id", the same on every machine and in every run."""
    digest = hashlib.blake2b(f"{name}/{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def usable_caption(text: str) -> str:
    """The caption itself. Raises BrokenSample if it is empty or longer than MAX_CAPTION."""
    if len(text) > MAX_CAPTION:
        raise BrokenSample(f"caption of {len(text):,} characters, {MAX_CAPTION:,} are allowed")
    if not text.strip():
        raise BrokenSample("empty caption")
    return text
