"""Small good data sets, the register of damages, and damage to bytes of any kind.

A data set is the folder of one input: `mine/mine_train.tsv`, `mine/mine_test.tsv` and `mine/images/`; or JSON
annotations beside the images; or `mine_train.arrow` and `mine_test.arrow`. A damage takes (folder, rng) and leaves a
damaged data set in it; what it does follows from the generator alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, CAPTIONS = 9, 12  # 108 rows: one bad row is less than 1%
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
WORDS = "a an the black white dog cat child runs sleeps plays on under snow grass sofa tree two red ball small".split()
Rng = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """A kind of damage. family: its line in the table; layout: what kind of data set it makes."""

    family: str
    name: str
    layout: str
    damage: Callable[[Path, Rng], None]


KINDS: list[Kind] = []


def damages(layout: str, family: str, *hows: str) -> Callable:
    """Register a function as a kind of damage; with `hows`, as one kind for each, which it gets as third argument."""

    def register(function: Callable) -> Callable:
        for how in hows or ("",):
            damage = function if not how else lambda folder, rng, how=how: function(folder, rng, how)
            KINDS.append(Kind(family, how or function.__name__.replace("_", " "), layout, damage))
        return function

    return register


def encode(rng: Rng, kind: str) -> bytes:
    """A small image in one of FORMATS, of any mode that the format has."""
    modes = {"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "RGBA", "L", "P", "1", "I;16"], "GIF": ["P"], "BMP": ["RGB"]}
    mode = str(rng.choice(modes.get(kind, ["RGB"])))
    width, height = (int(side) for side in rng.integers(20, 70, 2))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def caption(rng: Rng) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(4, 12))))


def good_rows(rng: Rng) -> list[list[str]]:
    """[title, filepath, image_id] per row."""
    names = [f"images/{i}.{FORMATS[i % len(FORMATS)].lower()}" for i in range(IMAGES)]
    return [[caption(rng), name, str(1000 + i)] for i, name in enumerate(names) for _ in range(CAPTIONS)]


def write_tables(folder: Path, rows: list[list[str]]) -> None:
    lines = ["title\tfilepath\timage_id", *("\t".join(row) for row in rows)]
    write_table(folder, "\n".join(lines).encode() + b"\n")


def write_table(folder: Path, data: bytes) -> None:
    for split in ("train", "test"):
        (folder / "mine" / f"mine_{split}.tsv").write_bytes(data)


def read_table(folder: Path) -> bytes:
    return (folder / "mine" / "mine_train.tsv").read_bytes()


def good_tables(folder: Path, rng: Rng) -> None:
    rows = good_rows(rng)
    images = folder / "mine" / "images"
    images.mkdir(parents=True)
    for name in dict.fromkeys(row[1] for row in rows):
        (folder / "mine" / name).write_bytes(encode(rng, name.rsplit(".", 1)[1].upper()))
    write_tables(folder, rows)


def victim(folder: Path, rng: Rng) -> Path:
    """One of the images."""
    return sorted((folder / "mine" / "images").iterdir())[int(rng.integers(IMAGES))]


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(1, max(2, len(data))))]


def flip(data: bytes, rng: Rng, most: int = 40, start: int = 0, stop: int | None = None) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(start, min(len(data), stop or len(data)), int(rng.integers(1, most + 1))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


def zero(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, max(2, len(data) // 2)))
    return (data[:start] + bytes(length) + data[start + length :])[: len(data)]
