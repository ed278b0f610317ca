"""Files made to keep a decoder busy are refused before a pixel is decoded; what real images have is not."""

import io
import struct
import time
import zlib

import pytest
from fuzzing.png import chunk
from PIL import Image, PngImagePlugin, TiffImagePlugin

from lexlip_data.errors import BrokenImage
from lexlip_data.sources import image_bounds, images
from lexlip_data.sources.images import open_image


def encode(kind, size=(64, 64), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(code, body):
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def after(data, at, extra):
    return data[:at] + extra + data[at:]


def progressive(side, scans):
    """A grey progressive JPEG of so many scans that change nothing."""
    tables = segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    tables += segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\0")
    blocks = ((side + 7) // 8) ** 2
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])) + tables
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes((blocks + 7) // 8)
    rest = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\x7f\xfe" * (blocks // 32767 + 1)
    return head + first + rest * (scans - 1) + b"\xff\xd9"


def directory(entries, order="<"):
    """A TIFF or EXIF block of (tag, kind, count, value) entries."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHLL", *entry) for entry in entries)
    return mark + struct.pack(order + "LH", 8, len(entries)) + body + bytes(4)


def tiff(*more, width=100, height=100, pad=20_000):
    """A grey TIFF in one strip, with more tags."""
    form = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    given = {entry[0] for entry in more}
    entries = [(tag, 4, 1, value) for tag, value in form.items() if tag not in given]
    return directory(sorted([*entries, *more])) + bytes(pad)


JPEG = encode("JPEG")
PNG = encode("PNG")
GIF = encode("GIF", mode="P")
EXIF = directory([(0x9000 + i, 2, 60_000, 8) for i in range(4000)]) + bytes(10_000)
MANY = directory([(i, 3, 1, 1) for i in range(5000)])
SIZ = encode("JPEG2000", no_jp2=True) if "JPEG2000" in images._FORMATS else b"\xff\x4f\xff\x51" + bytes(60)
BOXED = encode("JPEG2000") if "JPEG2000" in images._FORMATS else b""


def siz(at, form, *values):
    """A JPEG 2000 codestream with other numbers at a place of its SIZ segment."""
    data = bytearray(SIZ)
    struct.pack_into(form, data, at, *values)
    return bytes(data)


HOSTILE = {
    "scans of a small JPEG": lambda: progressive(64, 101),
    "scans of a large JPEG": lambda: progressive(8000, 25),
    "scans of a sequential JPEG": lambda: (
        JPEG[: JPEG.index(b"\xff\xda")] + (segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + bytes(100)) * 101
    ),
    "EXIF segments": lambda: after(JPEG, 2, segment(0xE1, b"Exif\0\0" + b"a" * 60) * 20_000),
    "long EXIF segments": lambda: after(JPEG, 2, segment(0xE1, b"Exif\0\0" + b"a" * 65_000) * 260),
    "profile segments": lambda: after(JPEG, 2, segment(0xE2, b"ICC_PROFILE\0\1\xffa") * 20_000),
    "empty segments": lambda: after(JPEG, 2, b"\xff\xe5\0\2" * 2000),
    "comments": lambda: after(JPEG, 2, b"\xff\xfe\0\2" * 2000),
    "markers alone": lambda: after(JPEG, 2, b"\xff\xd0" * 2000),
    "fill": lambda: after(JPEG, 2, b"\xff" * 1_000_000),
    "junk": lambda: after(JPEG, 20, bytes(1_000_000)),
    "EXIF of overlapping values": lambda: after(JPEG, 2, segment(0xE1, b"Exif\0\0" + EXIF[:65_000])),
    "EXIF of many tags": lambda: after(JPEG, 2, segment(0xE1, b"Exif\0\0" + MANY[:65_000])),
    "MPO of overlapping values": lambda: after(JPEG, 2, segment(0xE2, b"MPF\0" + EXIF[:65_000])),
    "EXIF in a PNG": lambda: after(PNG, 33, chunk(b"eXIf", EXIF)),
    "EXIF in a text of a PNG": lambda: after(
        PNG, 33, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + EXIF.hex().encode()))
    ),
    "PNG chunks": lambda: after(PNG, 33, chunk(b"teXt", b"") * 2000),
    "PNG chunks at the end": lambda: after(PNG, len(PNG) - 12, chunk(b"teXt", b"") * 2000),
    "PNG data chunks": lambda: after(PNG, PNG.index(b"IDAT") - 4, chunk(b"IDAT", b"") * 70_000),
    "PNG profiles": lambda: after(PNG, 33, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(900_000))) * 200),
    "PNG texts": lambda: after(PNG, 33, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) * 200),
    "GIF extensions": lambda: after(GIF, GIF.index(b","), b"\x21\xfe\x01a\0" * 100_000),
    "GIF blocks": lambda: after(GIF, GIF.index(b","), b"\x21\xfe" + b"\x01a" * 100_000 + b"\0"),
    "GIF junk": lambda: after(GIF, GIF.index(b","), b"a" * 100_000),
    "PPM of blanks": lambda: b"P6" + b" " * 1_000_000 + b"1 1 255\n\0\0\0",
    "PPM of a comment": lambda: b"P6\n#" + b"c" * 1_000_000 + b"\n1 1 255\n\0\0\0",
    "TIFF of a huge tile": lambda: tiff((322, 4, 1, 26_000), (323, 4, 1, 26_000), (324, 4, 1, 8), (325, 4, 1, 9)),
    "TIFF of tiny tiles": lambda: tiff((322, 4, 1, 1), (323, 4, 1, 1), width=1000, height=1000),
    "TIFF of many strips": lambda: tiff((273, 4, 4000, 200)),
    "TIFF of many tiles": lambda: tiff((322, 4, 1, 256), (323, 4, 1, 256), (324, 4, 4000, 200)),
    "TIFF of overlapping values": lambda: tiff(*((40_000 + i, 1, 20_000, 8) for i in range(300))),
    "TIFF of many tags": lambda: tiff(*((10_000 + i, 3, 1, 1) for i in range(5000))),
    "TIFF that says it twice": lambda: tiff((256, 4, 1, 100), (256, 4, 1, 30_000)),
    "TIFF of JPEGs of many scans": lambda: tiff((259, 3, 1, 7)) + b"\xff\xda" * 30,
    "JPEG 2000 tiles": lambda: siz(8, ">IIIIIIII", 8160, 8160, 0, 0, 32, 32, 0, 0),
    "JPEG 2000 components": lambda: siz(40, ">H", 16_000),
    "JPEG 2000 pixels": lambda: siz(8, ">II", 60_000, 60_000),
    "JPEG 2000 segments": lambda: after(SIZ, SIZ.index(b"\xff\x52"), b"\xff\x64\0\4\0\1" * 2000),
    "JPEG 2000 boxes": lambda: after(BOXED, 12, struct.pack(">I4s", 8, b"free") * 2000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_keep_a_decoder_busy(name):
    if "JPEG 2000" in name and not BOXED:
        pytest.skip("Pillow was built without JPEG 2000")
    data = HOSTILE[name]()
    start = time.process_time()
    with pytest.raises(BrokenImage) as caught:
        open_image(data, 64)
    assert time.process_time() - start < 0.5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    if "twice" not in name:
        assert "more than a real image has" in str(caught.value)
    with pytest.raises(BrokenImage):
        images.open_pixels(memoryview(data), 64)


def test_what_real_images_have():
    noise = Image.effect_noise((256, 256), 100).convert("RGB")
    exif, texts, tags = Image.Exif(), PngImagePlugin.PngInfo(), TiffImagePlugin.ImageFileDirectory_v2()
    exif[0x0112], exif[0x010E] = 1, "a" * 5000
    for number in range(50):
        texts.add_text(f"key {number}", "text " * 100, zip=True)
        tags[40_000 + number] = "text " * 100
    thumbnail = segment(0xEC, progressive(64, 10) * 5)
    files = [
        (noise, "JPEG", {"progressive": True, "exif": exif, "icc_profile": bytes(300_000)}),
        (noise, "MPO", {"save_all": True, "append_images": [noise] * 3}),
        (noise, "PNG", {"pnginfo": texts, "exif": exif, "icc_profile": bytes(3000)}),
        (noise, "PNG", {"save_all": True, "append_images": [noise] * 3}),
        (noise, "GIF", {"save_all": True, "append_images": [noise] * 3, "comment": b"c" * 20_000}),
        (noise, "WEBP", {"save_all": True, "append_images": [noise] * 3, "exif": exif}),
        (noise, "TIFF", {"tiffinfo": tags, "compression": "jpeg"}),
        (noise, "TIFF", {"compression": "tiff_lzw", "strip_size": 100}),
        (noise, "TIFF", {"big_tiff": True}),
        (noise, "PPM", {}),
        (noise, "JPEG2000", {"tile_size": (32, 32)}),
    ]
    for image, kind, options in files:
        if kind in images._FORMATS:
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            assert open_image(buffer.getvalue()).size == (256, 256), (kind, options)
    assert open_image(after(JPEG, 2, thumbnail)).size == (64, 64)
    assert open_image(progressive(64, 100)).size == (64, 64)
    assert open_image(b"P6 # a comment\n1 1 255\n" + bytes(100_000)).size == (1, 1)


def test_a_large_progressive_image_of_twenty_scans():
    image_bounds.check_structure(progressive(8192, 20))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "JPEG2000", "PPM"])
def test_a_file_that_is_cut_short_is_left_to_its_decoder(kind):
    if kind not in images._FORMATS:
        pytest.skip(f"Pillow was built without {kind}")
    data = encode(kind, mode="L")
    for length in range(1, len(data), 7):
        image_bounds.check_structure(data[:length])


def test_an_orientation_in_damaged_exif_is_ignored():
    block = directory([(0x0112, 3, 1, 6), (0x010E, 2, 10_000_000, 8)])
    assert open_image(after(encode("JPEG", (32, 16)), 2, segment(0xE1, b"Exif\0\0" + block))).width in (16, 32)
