"""PNG files by hand, also such as no program writes; the tests make theirs with it too."""

import struct
import zlib


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def whole(width: int, height: int, depth: int, colour: int, pixels: bytes, extra: bytes = b"") -> bytes:
    """A file of one image.

    Args:
        colour: 0 grey, 2 RGB, 3 a palette, 4 grey and alpha, 6 RGBA.
        pixels: packed.
        extra: chunks before the pixels.
    """
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def black(width: int, height: int, colour: int = 2, extra: bytes = b"", depth: int = 8) -> bytes:
    """A black image, in a few hundred kilobytes, made without holding its pixels."""
    squeeze = zlib.compressobj(6)
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour] * depth // 8)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    return whole(width, height, depth, colour, pixels, extra)
