"""Encoded bytes -> an RGB image, whatever the file holds.

Costs one decode. A JPEG much larger than wanted is decoded at a half, a quarter or an eighth of its size by the
JPEG library itself (draft mode), which is several times faster than decoding all of it and shrinking the result.
Needs only numpy, Pillow and simplejpeg, so that the converter's worker processes start quickly.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from lexlip_data.errors import BrokenImage
from lexlip_data.sources.image_bounds import MAX_PIXELS, check_structure, check_tags
from lexlip_data.sources.plugins import can_open

TRUNCATED, TRANSPARENCY = ("refuse", "read"), ("white", "drop")
MAX_RATIO = 100  # of the longer side to the shorter: resizing the shorter one makes the longer one that much longer
# Chosen by content, whatever the name says. Pillow knows more; some start other programs (EPS) or are not images.
_FORMATS = [name for name in "JPEG MPO PNG GIF WEBP TIFF BMP PPM JPEG2000 AVIF HEIF JXL".split() if can_open(name)]
_ROTATION = 0x0112  # tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_TAGGED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow looks for the rotation
_BAND_PIXELS = 1 << 20  # what needs more memory than the image itself is done in bands of so many pixels


@dataclass(frozen=True)
class Reading:
    """How a run reads images; the defaults are right for most, the others are the official code's ways."""

    truncated: bool = False  # read files that are cut short: what is missing is grey, or black
    turned: bool = True  # turn images upright by their EXIF tag
    on_white: bool = True  # transparency; else the colours that transparent pixels have
    reduced: bool = True  # decode large JPEGs at a half, a quarter or an eighth of their size


USUAL = Reading()


def open_image(data: bytes | memoryview, min_side: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an encoded image to 8-bit RGB, upright, transparency on white.

    Args:
        data: the encoded file (JPEG, PNG, GIF, WebP, TIFF, BMP, PPM, JPEG 2000, AVIF; with plugins HEIC and JPEG XL).
        min_side: if positive, a JPEG may be decoded smaller, its shorter side never below 2 * min_side pixels
            (the factor 2 leaves the final resize something to filter).
        max_pixels: a lower limit than MAX_PIXELS.
    Raises:
        BrokenImage: the bytes are empty, truncated, of no known format, of more than `max_pixels` pixels, of sides that
            differ more than MAX_RATIO times, or of a structure that would keep a decoder busy (`image_bounds`).
    """
    max_pixels = min(max_pixels, MAX_PIXELS)
    with _refused_clearly(data):
        data = bytes(data)  # Pillow reads from a copy in any case; of bytes this is none
        return to_rgb(upright(_decode(data, _open(data, max_pixels), min_side, max_pixels)))


def open_pixels(data: bytes | memoryview, size: int, reading: Reading = USUAL) -> Image.Image | np.ndarray:
    """`open_image` for images of size x size: a JPEG that has this size already comes as a uint8 array (H, W, 3).

    The same pixels, in little more than half the time: simplejpeg and Pillow both drive libjpeg-turbo, but Pillow packs
    them into an image first. Where an image has to be resized there is nothing to gain.
    Raises:
        BrokenImage: as `open_image`.
    """
    with _refused_clearly(data):
        encoded = bytes(data)
        image = _open(encoded, MAX_PIXELS)
        plain = image.format == "JPEG" and image.mode == "RGB" and not (reading.turned and _is_tagged(image))
        if plain and image.size == (size, size):
            with suppress(ValueError):  # something is wrong: Pillow decides whether the file can be used all the same
                pixels = simplejpeg.decode_jpeg(encoded, "RGB")
                if pixels.shape == (size, size, 3):
                    return pixels
        with _short_ones_read() if reading.truncated else nullcontext():
            image = _decode(encoded, image, size if reading.reduced else 0, MAX_PIXELS, reading.on_white)
        return to_rgb(upright(image) if reading.turned else image, reading.on_white)


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


def _open(data: bytes, max_pixels: int) -> Image.Image:
    check_structure(data)
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image.size, max_pixels)
    return image


@contextmanager
def _short_ones_read() -> Iterator[None]:
    """Pillow's switch for files that are cut short, on meanwhile. It is the process's: not for several threads."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode(data: bytes, image: Image.Image, min_side: int, max_pixels: int, on_white: bool = True) -> Image.Image:
    if min_side > 0:
        image.draft(None, (2 * min_side, 2 * min_side))  # a no-op for everything but JPEG
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if image.format == "PNG" and tiles else None  # what Pillow makes the pixels from
    image.load()
    _check_size(image.size, max_pixels)  # some formats state it again, differently, where the pixels begin
    key = image.info.get("transparency")  # a PNG's transparent colour, in its own bits; the pixels have 8 by now
    if stored in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[stored]
    elif stored == "RGB;16B" and key is not None and on_white:
        _key_on_white(image, data, np.array(key))
    return image


def _key_on_white(image: Image.Image, data: bytes, key: np.ndarray) -> None:
    """Make the colour `key`, three numbers of 16 bits, white in a PNG of 16 bits: Pillow keeps only the upper 8.

    Costs a second decode, for the lower 8.
    """
    lower = Image.open(io.BytesIO(data), formats=["PNG"])
    lower.tile = [(*lower.tile[0][:3], "RGB;16L")]  # type: ignore[list-item]  # the other byte of each number
    lower.load()
    for top, band in _bands(image):
        high = np.array(band)
        low = np.asarray(lower.crop((0, top, image.width, top + band.height)))
        high[(high == key >> 8).all(axis=2) & (low == key & 255).all(axis=2)] = 255
        image.paste(Image.fromarray(high), (0, top))
    del image.info["transparency"]


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise BrokenImage(f"{width} x {height} pixels: nothing to see")
    if width * height > max_pixels:
        raise BrokenImage(f"{width} x {height} pixels are more than {max_pixels:,}: a decompression bomb, or too large")
    if max(size) > MAX_RATIO * min(size):
        raise BrokenImage(f"{width} x {height} pixels: one side is more than {MAX_RATIO} times the other")


def upright(image: Image.Image) -> Image.Image:
    """Apply the camera's rotation tag. A damaged tag is ignored: the pixels themselves are fine.

    Raises:
        BrokenImage: tags that would keep their reader busy.
    """
    if image.format == "JPEG" and not _is_tagged(image):
        return image  # most have no tag, and looking closer takes a twentieth of the decode
    try:
        block = image.info.get("exif")
        if block is None and (text := image.info.get("Raw profile type exif")):
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        if block is not None:
            check_tags(block)
        turn = _TURNS.get(image.getexif().get(_ROTATION, 1))
        return image if turn is None else image.transpose(turn)
    except BrokenImage:
        raise
    except Exception:
        return image


def _is_tagged(image: Image.Image) -> bool:
    return not _TAGGED.isdisjoint(image.info)


def square_of(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (bicubic), then the middle square: torchvision's Resize and CenterCrop, bit for bit.

    Saves the 40 microseconds in which those check their arguments, and more where an image is wider than high: Pillow
    resizes such an image along its rows first, then along its columns; cropped in between, what is cut off is spared
    the second resize. RGB only: of a mode with alpha each resize would multiply the colours by it.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = (size if side == short else int(size * side / short) for side in (width, height))
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    if short != size and width > height:
        rows = image.resize((wide, height), Image.Resampling.BICUBIC).crop((left, 0, left + size, height))
        return rows.resize((size, size), Image.Resampling.BICUBIC)
    if short != size:
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size)) if (wide, high) != (size, size) else image


def to_rgb(image: Image.Image, on_white: bool = True) -> Image.Image:
    """Any mode to 8-bit RGB: transparency on white, or left out; 16-bit and float images are scaled, not clipped."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _scaled_to_grey(image).convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return cast(Image.Image, ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))  # None only in place
    if on_white and (mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info):
        return _on_white(image)
    if mode in ("RGBa", "La"):  # Pillow knows one way only
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode])
    return image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, the rows as an image) from the top: what is made of a band is much larger than the band itself."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGB", image.size)
    key = image.info.get("transparency")
    for top, band in _bands(image):
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where the pixels have only the upper 8
            band.info["transparency"] = tuple(value >> 8 for value in key)
        if band.mode == "La":  # Pillow knows one way only
            band = band.convert("LA")
        white = Image.new("RGBA", band.size, "white")
        out.paste(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"), (0, top))
    return out


def _scaled_to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float images -> 8-bit grey by scale; Pillow's own convert would clip all above 255 to white.

    I;16 is 16 bits by definition, and so is mode I out of a PNG (older Pillow opens 16-bit PNGs so). Other files do
    not state their range: it is taken as 1 (float), 8 bits or 16 bits, the first that holds the values, and else as
    the image's own range. A PNG's transparent grey becomes white.
    """
    key = image.info.get("transparency")
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
        values = _floats(band)
        scaled = (values - low) * (255.0 / max(high - low, 1e-12))
        if isinstance(key, int):
            scaled[values == key] = 255.0
        out.paste(Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)), (0, top))
    return out


def _floats(band: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(band, dtype=np.float64), posinf=0.0, neginf=0.0)
