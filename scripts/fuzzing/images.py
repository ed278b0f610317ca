"""Damage to the content of an image's file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

from PIL import Image

from fuzzing.good import (
    CAPTIONS,
    FORMATS,
    Rng,
    cut,
    damages,
    encode,
    flip,
    good_rows,
    good_tables,
    victim,
    write_tables,
    zero,
)
from fuzzing.png import black, chunk


@damages("tsv", "images", "cut short", "flipped bytes", "flipped header", "zeroed", "spliced", "junk after")
def image(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    path = victim(folder, rng)
    data = path.read_bytes()
    other = victim(folder, rng).read_bytes()
    path.write_bytes(
        {
            "cut short": lambda: cut(data, rng),
            "flipped bytes": lambda: flip(data, rng),
            "flipped header": lambda: flip(data, rng, 8, 0, 64),
            "zeroed": lambda: zero(data, rng),
            "spliced": lambda: cut(data, rng) + other[int(rng.integers(len(other))) :],
            "junk after": lambda: data + rng.bytes(1000),
        }[how]()
    )


MAGIC = [
    b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\x24\0\0\0WEBPVP8 ",
    b"\0\0\0\x20ftypavif",
]  # fmt: skip


@damages(
    "tsv", "not images", "empty", "random bytes", "magic and junk", "web page", "EPS", "SVG", "PDF", "sparse 300 MB"
)
def no_image(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    path = victim(folder, rng)
    content = {
        "empty": b"",
        "random bytes": rng.bytes(int(rng.integers(1, 5000))),
        "magic and junk": MAGIC[int(rng.integers(len(MAGIC)))] + rng.bytes(int(rng.integers(1, 5000))),
        "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "PDF": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
        "sparse 300 MB": b"\xff\xd8\xff",
    }[how]
    path.write_bytes(content)
    if how == "sparse 300 MB":
        os.truncate(path, 300 << 20)


@damages("tsv", "not images")
def wrong_extension(folder: Path, rng: Rng) -> None:
    good_tables(folder, rng)
    victim(folder, rng).write_bytes(encode(rng, FORMATS[int(rng.integers(len(FORMATS)))]))


@damages("tsv", "bombs", "PNG under the limit", "PNG over it", "strip", "TIFF", "GIF", "text", "lying header")
def bomb(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    path = victim(folder, rng)
    rows = good_rows(rng)  # one caption is enough: decoding a large image takes a second or two
    write_tables(folder, [row for i, row in enumerate(rows) if path.name not in row[1] or i % CAPTIONS == 0])
    colour = int(rng.choice([0, 2, 6]))
    data = b""
    if how == "PNG under the limit":
        side = int(rng.integers(7000, 8192))
        data = black(side, side, colour, depth=int(rng.choice([8, 16])) if colour == 0 else 8)
    elif how == "PNG over it":  # below Pillow's warning, between warning and error, above
        side = int(rng.choice([8300, 10000, 14000]))
        data = black(side, side, 0)
    elif how == "strip":
        long = int(rng.integers(10_000, 65_000))
        data = black(1, long, colour) if rng.integers(2) else black(long, 1, colour)
    elif how in ("TIFF", "GIF"):
        buffer = io.BytesIO()
        side = int(rng.choice([8000, 12_000, 20_000]))
        more = {"compression": "group4"} if how == "TIFF" else {}
        Image.new("1", (side, side)).save(buffer, how, **more)
        data = buffer.getvalue()
    elif how == "text":
        text = b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)
        data = black(30, 30, extra=chunk(b"zTXt", text))
    else:
        data = bytearray(encode(rng, str(rng.choice(["PNG", "GIF", "BMP"]))))
        if data[:2] == b"BM":
            data[18:26] = struct.pack("<ii", 60_000, 60_000)
        elif data[:3] == b"GIF":
            data[6:10] = struct.pack("<HH", 65_535, 65_535)
        else:
            data[16:24] = struct.pack(">II", 60_000, 60_000)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
