"""Formats that packages beside Pillow read, where those are installed; and the size of a JPEG XL image without one."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from lexlip_data.errors import BrokenImage
from lexlip_data.sources.image_bounds import check_structure
from lexlip_data.sources.images import open_image
from lexlip_data.sources.kinds import kind_of
from lexlip_data.sources.listing import Listing
from lexlip_data.sources.plugins import can_open


@pytest.mark.parametrize(("form", "kind"), [("HEIF", "HEIC/HEIF"), ("JXL", "JPEG XL"), ("AVIF", "AVIF")])
def test_an_image_goes_there_and_back(tmp_path, form, kind):
    if not can_open(form):
        pytest.skip(f"no plugin for {form} is installed")
    buffer = io.BytesIO()
    Image.new("RGB", (90, 70), (200, 40, 30)).save(buffer, form)
    data = buffer.getvalue()
    assert kind_of(data) == kind
    image = open_image(data)
    assert image.mode == "RGB" and image.size == (90, 70)
    assert np.abs(np.asarray(image, int).mean(axis=(0, 1)) - (200, 40, 30)).max() < 6
    (tmp_path / "photo.xyz").write_bytes(data)
    assert list(Listing(tmp_path)) == ["photo.xyz"]
    with pytest.raises(BrokenImage, match="pixels"):
        open_image(data, max_pixels=100)


def codestream(width, height):
    """The first bytes of a JPEG XL image of this size: 30-bit sides, no ratio."""
    bits = 0 | 3 << 1 | (height - 1) << 3 | 0 << 33 | 3 << 36 | (width - 1) << 38
    return b"\xff\x0a" + bits.to_bytes(16, "little")


@pytest.mark.parametrize("boxed", [False, True])
def test_a_huge_jpeg_xl_image_is_refused_by_its_header(boxed):
    def file(width, height):
        stream = codestream(width, height)
        if not boxed:
            return stream
        return b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 8 + len(stream), b"jxlc") + stream

    check_structure(file(8000, 8000))
    with pytest.raises(BrokenImage, match="100000 x 90000 pixels are more than"):
        check_structure(file(100_000, 90_000))
    square = b"\xff\x0a" + (0 | 3 << 1 | 29_999 << 3 | 1 << 33).to_bytes(16, "little")
    with pytest.raises(BrokenImage, match="30000 x 30000"):
        check_structure(square)


def test_a_jpeg_xl_file_without_an_image_is_refused():
    with pytest.raises(BrokenImage, match="without an image"):
        check_structure(b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 8, b"free"))
