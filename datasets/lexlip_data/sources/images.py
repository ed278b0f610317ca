"""Encoded bytes -> an RGB image, whatever the file holds.

Costs one decode. A JPEG much larger than wanted is decoded at a half, a quarter or an eighth of its size by the
JPEG library itself (draft mode), which is several times faster than decoding all of it and shrinking the result.
Needs only numpy, Pillow and simplejpeg, so that the converter's worker processes start quickly.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lexlip_data.errors import BrokenImage

MAX_PIXELS = 64 << 20  # decoded, turned and converted, such an image takes up to 1.3 GB (JPEG 2000), usually 0.5 GB
MAX_RATIO = 100  # of the longer side to the shorter: resizing the shorter one makes the longer one that much longer
Image.init()
# Chosen by content, whatever the name says. Pillow knows more; some start other programs (EPS) or are not images.
_FORMATS = [name for name in "JPEG MPO PNG GIF WEBP TIFF BMP PPM JPEG2000 AVIF".split() if name in Image.OPEN]
_TAGGED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow looks for the rotation
_BAND_PIXELS = 1 << 20  # what needs more memory than the image itself is done in bands of so many pixels


def open_image(data: bytes | memoryview, min_side: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an encoded image to 8-bit RGB, upright, transparency on white.

    Args:
        data: the encoded file (JPEG, PNG, GIF, WebP, TIFF, BMP, PPM, JPEG 2000, AVIF).
        min_side: if positive, a JPEG may be decoded smaller, its shorter side never below 2 * min_side pixels
            (the factor 2 leaves the final resize something to filter).
        max_pixels: a lower limit than MAX_PIXELS.
    Raises:
        BrokenImage: the bytes are empty, truncated, of no known format, of more than `max_pixels` pixels, or of sides
            that differ more than MAX_RATIO times.
    """
    max_pixels = min(max_pixels, MAX_PIXELS)
    with _refused_clearly(data):
        return to_rgb(upright(_decode(_open(data, max_pixels), min_side, max_pixels)))


def open_pixels(data: bytes | memoryview, size: int) -> Image.Image | np.ndarray:
    """`open_image` for images of size x size: a JPEG that has this size already comes as a uint8 array (H, W, 3).

    The same pixels, in little more than half the time: simplejpeg and Pillow both drive libjpeg-turbo, but Pillow packs
    them into an image first. Where an image has to be resized there is nothing to gain.
    Raises:
        BrokenImage: as `open_image`.
    """
    with _refused_clearly(data):
        image = _open(data, MAX_PIXELS)
        if image.size == (size, size) and image.format == "JPEG" and image.mode == "RGB" and not _is_tagged(image):
            with suppress(ValueError):  # something is wrong: Pillow decides whether the file can be used all the same
                pixels = simplejpeg.decode_jpeg(
                    memoryview(data).cast("B"), "RGB"
                )  # Arrow's buffers are of signed bytes
                if pixels.shape == (size, size, 3):
                    return pixels
        return to_rgb(upright(_decode(image, size, MAX_PIXELS)))


@contextmanager
def _refused_clearly(data: bytes | memoryview) -> Iterator[None]:
    if len(data) == 0:
        raise BrokenImage("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow's first warning of a bomb is an error; its other warnings say nothing that a user could act on.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("cannot be decoded: no image, or of an unknown format") from error
    except Exception as error:  # on bad bytes Pillow and its plugins raise anything, MemoryError included
        raise BrokenImage(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _open(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image.size, max_pixels)
    return image


def _decode(image: Image.Image, min_side: int, max_pixels: int) -> Image.Image:
    if min_side > 0:
        image.draft(None, (2 * min_side, 2 * min_side))  # a no-op for everything but JPEG
    image.load()
    _check_size(image.size, max_pixels)  # some formats state it again, differently, where the pixels begin
    return image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise BrokenImage(f"{width} x {height} pixels: nothing to see")
    if width * height > max_pixels:
        raise BrokenImage(f"{width} x {height} pixels are more than {max_pixels:,}: a decompression bomb, or too large")
    if max(size) > MAX_RATIO * min(size):
        raise BrokenImage(f"{width} x {height} pixels: one side is more than {MAX_RATIO} times the other")


def upright(image: Image.Image) -> Image.Image:
    """Apply the camera's rotation tag. A damaged tag is ignored: the pixels themselves are fine."""
    if image.format == "JPEG" and not _is_tagged(image):
        return image  # most have no tag, and looking closer takes a twentieth of the decode
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:
        return image


def _is_tagged(image: Image.Image) -> bool:
    return not _TAGGED.isdisjoint(image.info)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: transparency on white; 16-bit and float images are scaled, not clipped."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _scaled_to_grey(image).convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return cast(Image.Image, ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))  # None only in place
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, the rows as an image) from the top: what is made of a band is much larger than the band itself."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGB", image.size)
    for top, band in _bands(image):
        white = Image.new("RGBA", band.size, "white")
        out.paste(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"), (0, top))
    return out


def _scaled_to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float images -> 8-bit grey by scale; Pillow's own convert would clip all above 255 to white.

    I;16 is 16 bits by definition, and so is mode I out of a PNG (older Pillow opens 16-bit PNGs so). Other files do
    not state their range: it is taken as 1 (float), 8 bits or 16 bits, the first that holds the values, and else as
    the image's own range.
    """
    ends = [(values.min(), values.max()) for values in (_floats(band) for _, band in _bands(image))]
    low, high = float(min(low for low, _ in ends)), float(max(high for _, high in ends))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        tops: tuple[float, ...] = (65535.0,)
    else:
        tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    if low >= 0:
        low, high = next(((0.0, top) for top in tops if high <= top), (low, high))
    out = Image.new("L", image.size)
    for top, band in _bands(image):
        scaled = (_floats(band) - low) * (255.0 / max(high - low, 1e-12))
        out.paste(Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)), (0, top))
    return out


def _floats(band: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(band, dtype=np.float64), posinf=0.0, neginf=0.0)
