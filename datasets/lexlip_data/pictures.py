"""Encoded bytes -> an RGB picture, whatever the file holds.

Costs one decode. A JPEG much larger than wanted is decoded at a half, a quarter or an eighth of its size by the
JPEG library itself (draft mode), which is several times faster than decoding it whole and shrinking it.
Needs numpy and Pillow only, so that the converter's worker processes start quickly.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms, ImageOps

from lexlip_data.errors import BrokenImage

# What Pillow and its plugins raise on bad bytes; MemoryError comes from absurd sizes in a damaged header.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, MemoryError,
    OverflowError, AttributeError, NotImplementedError, Image.DecompressionBombError,
)  # fmt: skip
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


def open_image(data: bytes | memoryview, min_side: int = 0) -> Image.Image:
    """Decode the first frame of an encoded picture to 8-bit RGB, upright, transparency on white.

    Args:
        data: the encoded file (JPEG, PNG, GIF, WebP, TIFF, BMP, ...).
        min_side: if positive, a JPEG may be decoded smaller, its shorter side never below 2 * min_side pixels
            (the factor 2 leaves the final resize something to filter).
    Raises:
        BrokenImage: the bytes are empty, truncated, of no known format, or beyond Pillow's decompression-bomb limit.
    """
    if len(data) == 0:
        raise BrokenImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        if min_side > 0:
            image.draft(None, (2 * min_side, 2 * min_side))  # a no-op for everything but JPEG
        image.load()
        return to_rgb(upright(image))
    except _DECODE_ERRORS as error:
        raise BrokenImage(f"cannot be decoded ({type(error).__name__}: {error})") from error


def upright(image: Image.Image) -> Image.Image:
    """Apply the camera's rotation tag. A damaged tag is ignored: the pixels themselves are fine."""
    try:
        turned = ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        return image
    return image if turned is None else turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: transparency on white, 16-bit and float pictures scaled, not clipped."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _scale_to_grey(image).convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scale_to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float pictures -> 8-bit grey by scale; Pillow's own convert would clip all above 255 to white.

    I;16 is 16 bits by definition, and so is mode I out of a PNG (older Pillow opens 16-bit PNGs so). For other
    files the range is not written down: it is taken as 1 (float), 8 bits or 16 bits, the first that holds the
    values, and else the picture's own range.
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1 and image.mode == "F":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (pixels - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
