"""What every source of captioned pictures offers, however it is stored; and the id that evaluation counts by.

A source is a list of pictures of one data set and split, each with its captions. It keeps no Python object per
picture (offsets in numpy, text and bytes in Arrow buffers), so its memory does not grow in forked workers.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Pictures 0..len-1 of one data set and split."""

    name: str
    split: str

    def __len__(self) -> int: ...

    @property
    def caption_counts(self) -> np.ndarray:
        """Captions per picture, int64 (pictures,)."""

    def image_id(self, i: int) -> str: ...

    def image_bytes(self, i: int) -> bytes | memoryview:
        """The encoded picture. Raises BrokenImage if there is none."""

    def captions(self, i: int) -> list[str]: ...

    def long_captions(self, i: int) -> list[str]:
        """Long captions of the picture; empty where the source has none."""

    def where(self, i: int) -> str:
        """File and row, for messages."""


def hash_id(name: str, image_id: str) -> int:
    """A stable id in [0, 2**63) of "name/image_id", the same on every machine and in every run."""
    digest = hashlib.blake2b(f"{name}/{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
