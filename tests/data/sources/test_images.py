"""Every kind of image becomes upright 8-bit RGB; bad bytes become one error."""

import io
import struct
import sys
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from fuzzing.png import black, chunk, whole
from PIL import Image, features

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.loading.rng import isolated
from lexlip_data.loading.transforms import build_transform
from lexlip_data.sources import images
from lexlip_data.sources.images import open_image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner(data: bytes) -> tuple[int, ...]:
    image = open_image(data)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", (10, 20, 30)),
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 255)), "PNG", (200, 0, 0)),
        (Image.new("RGB", (4, 4), (9, 99, 199)).quantize(4), "PNG", (9, 99, 199)),
        (Image.new("RGB", (4, 4), (9, 99, 199)), "BMP", (9, 99, 199)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF", (255, 255, 255)),
        (Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF", (255, 255, 255)),
        (Image.new("F", (4, 4), 0.5), "TIFF", (128, 128, 128)),
        (Image.new("F", (4, 4), 200.0), "TIFF", (200, 200, 200)),
        (Image.new("I", (4, 4), 200), "TIFF", (200, 200, 200)),
        (Image.new("I", (4, 4), 32896), "TIFF", (128, 128, 128)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_modes(image, kind, expected):
    assert corner(encode(image, kind)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("value", [257, 300, 32896, 65535])
def test_sixteen_bits_are_scaled_not_clipped(value):
    data = encode(Image.fromarray(np.full((4, 4), value, dtype=np.uint16)), "PNG")
    assert corner(data) == pytest.approx([value / 257] * 3, abs=0.51)


def test_transparent_palette_and_colour_key():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    assert corner(encode(palette, transparency=0)) == (255, 255, 255)
    assert corner(encode(palette)) == (200, 0, 0)
    keyed = encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert corner(keyed) == (255, 255, 255)


def test_cmyk_jpeg():
    assert corner(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[0] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("white", (0, 0, 8, 8))  # white in the upper left corner
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    image = open_image(encode(image, "JPEG", exif=exif, quality=95))
    assert image.size == (32, 16)
    assert image.getpixel((2, 2))[0] > 200 and image.getpixel((30, 14))[0] < 50


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert corner(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.skipif(not features.check("webp"), reason="Pillow was built without WebP")
def test_webp():
    assert corner(encode(Image.new("RGB", (8, 8), (10, 200, 10)), "WEBP", lossless=True)) == (10, 200, 10)


@pytest.mark.parametrize("shape", [(2000, 1000), (1000, 3000), (450, 450), (449, 449)])
def test_draft_mode_stays_above_the_wanted_size(shape):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    data = encode(Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC), "JPEG", quality=95)
    small, whole = open_image(data, 112), open_image(data)
    assert whole.size == shape
    assert min(small.size) >= 2 * 112
    assert min(small.size) < 4 * 112 + 8
    transform = build_transform("vit", 112)
    assert (transform(small) - transform(whole)).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^the file is empty$"),
        (b"not an image", "^cannot be decoded: no image, or of an unknown format$"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "^cannot be decoded: no image, or of an unknown format$"),
    ],
)
def test_bad_bytes(data, message):
    with pytest.raises(BrokenImage, match=message):
        open_image(data)


def test_truncated_image(jpeg):
    data = jpeg(1, (200, 200))
    with pytest.raises(BrokenImage, match="truncated"):
        open_image(data[: len(data) // 2])


def test_decompression_black(monkeypatch, jpeg):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImage, match="DecompressionBomb"):
        open_image(jpeg(1, (100, 100)))


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (8300, "^8300 x 8300 pixels are more than 67,108,864: a decompression bomb"),
        (9500, r"^cannot be decoded \(DecompressionBombWarning: "),
        (14000, r"^cannot be decoded \(DecompressionBombError: "),
    ],
    ids=["no warning", "Pillow warns", "Pillow refuses"],
)
def test_bombs_are_refused_before_they_are_decoded(side, message, recwarn):
    with pytest.raises(BrokenImage, match=message):
        open_image(black(side, side))
    assert not recwarn.list


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's peak memory")
def test_the_largest_image_takes_little_more_than_its_pixels(python):
    code = (
        "import resource, sys; from lexlip_data.sources.images import open_image\n"
        "data = sys.stdin.buffer.read(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "open_image(data); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = python(code, input=black(8192, 8192))
    assert int(done.stdout) < 1.5 * 4 * 8192 * 8192 / 1024, done.stderr.decode()


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 301)])
def test_strips_are_refused(size):
    # Resizing the shorter side of the first to 224 would make the other 4,480,000.
    with pytest.raises(BrokenImage, match="one side is more than 100 times the other"):
        open_image(encode(Image.new("RGB", size)))
    assert open_image(encode(Image.new("RGB", (3, 300)))).size == (3, 300)


def test_the_content_decides_and_programs_are_no_images():
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", b"<html>404</html>", b"<svg/>"):
        with pytest.raises(BrokenImage, match="no image, or of an unknown format$"):
            open_image(data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "I;16", "I", "F"])
def test_large_images_are_converted_in_bands_without_a_seam(monkeypatch, mode):
    values = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in kind:
        image = Image.fromarray(values.astype(kind[mode]) * 100)
    else:
        image = Image.fromarray(values).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
        image = image.convert(mode)
        image.putalpha(Image.fromarray(values[::-1].copy()))
    whole = np.asarray(images.to_rgb(image))
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    assert np.array_equal(np.asarray(images.to_rgb(image)), whole) and whole.std() > 10


def test_vit_transform_is_resize_then_centre_crop():
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (16, 0, 48, 32))  # exactly the centre square
    tensor = build_transform(["vit"], 8)(image)
    assert tensor.shape == (3, 8, 8)
    assert tensor[:, :, 2:6].min() > 0.99 and tensor.max() <= 1.0


def test_randaug_leaves_the_process_generators_alone():
    import random

    import torch

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    transform = build_transform("vit_randaug", 16)

    def draws():
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    def start():
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    start()
    expected = draws()
    start()
    with isolated(5):
        first = transform(image)
    assert draws() == expected
    with isolated(5):
        assert torch.equal(first, transform(image))
    with isolated(6):
        others = [transform(image) for _ in range(5)]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("keys", "size", "message"),
    [
        ("vitt", 8, r"^transform keys \['vitt'\]: give exactly one of vit, vit_randaug, torchvision_randaug$"),
        ("pixelbert", 8, "the official pixelbert gives images of different sizes.*; give exactly one of vit,"),
        (["imagenet_randaug"], 8, "the official imagenet_randaug normalises by other numbers"),
        (["vit", "vit_randaug"], 8, r"^transform keys \['vit', 'vit_randaug'\]: give exactly one of"),
        ([], 8, r"^transform keys \[\]: give exactly one of"),
        ("vit", 0, "^image_size 0: must be a positive number of pixels$"),
    ],
)
def test_bad_transform_keys(keys, size, message):
    with pytest.raises(DataError, match=message):
        build_transform(keys, size)


@pytest.mark.parametrize("size", [224, 33])
def test_the_transform_is_torchvisions_bit_for_bit(size):
    from torchvision import transforms as tv

    steps = [tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC), tv.CenterCrop(size), tv.ToTensor()]
    wanted = tv.Compose([*steps, tv.Normalize([0.5] * 3, [0.5] * 3)])
    rng = np.random.default_rng(0)
    for width, height in [(500, 375), (375, 500), (224, 224), (225, 224), (224, 301), (100, 37), (33, 640), (451, 450)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert torch.equal(build_transform("vit", size)(image), wanted(image)), (width, height)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"quality": 30}, {"optimize": True}])
def test_a_jpeg_of_the_wanted_size_has_the_same_pixels_without_pillow(subsampling, how):
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((64, 64), Image.Resampling.BICUBIC)
    assert_same_pixels(encode(image, "JPEG", subsampling=subsampling, **how))


def test_a_jpeg_of_rgb_without_conversion_has_the_same_pixels_without_pillow():
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert_same_pixels(encode(Image.fromarray(values), "JPEG", keep_rgb=True))


def assert_same_pixels(data):
    pixels = images.open_pixels(memoryview(pa.py_buffer(data)), 64)
    assert isinstance(pixels, np.ndarray) and np.array_equal(pixels, np.asarray(open_image(data)))
    for key in ("vit", "vit_randaug"):
        transform = build_transform(key, 64)
        with isolated(3):
            first = transform(pixels)
        with isolated(3):
            assert torch.equal(first, transform(open_image(data, 64)))


def test_what_only_pillow_can_do_is_left_to_it(jpeg):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cases = [
        encode(image, "JPEG", exif=exif), *(encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")),
        encode(image, "PNG"), encode(image.resize((80, 64)), "JPEG"), encode(image, "JPEG")[:-2] + b"\0\0",
    ]  # fmt: skip
    for data in cases:
        opened = images.open_pixels(data, 64)
        assert isinstance(opened, Image.Image) and opened.tobytes() == open_image(data, 64).tobytes()
    data = jpeg(1, (64, 64))
    with pytest.raises(BrokenImage, match="truncated"):
        images.open_pixels(data[: len(data) // 2], 64)
    with pytest.raises(BrokenImage, match="the file is empty"):
        images.open_pixels(b"", 64)


def png(width, depth, colour, row, *chunks):
    """A PNG of one row of stored numbers, as its bytes are in the file."""
    return whole(width, 1, depth, colour, zlib.compress(b"\0" + row), b"".join(chunk(*each) for each in chunks))


def shorts(*values):
    return struct.pack(f">{len(values)}H", *values)


WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Grey of 16 bits: 1000 is transparent, 1001 is not; 1001 / 257 is 4.
        (png(3, 16, 0, shorts(1000, 1001, 65535), (b"tRNS", shorts(1000))), [WHITE, (4, 4, 4), WHITE]),
        (png(3, 16, 0, shorts(0, 1, 30000), (b"tRNS", shorts(0))), [WHITE, (0, 0, 0), (117, 117, 117)]),
        (png(2, 16, 0, shorts(0, 30000)), [(0, 0, 0), (117, 117, 117)]),
        # Grey and alpha of 16 bits: clear, solid, and half of 30000 with half of white.
        (png(3, 16, 4, shorts(30000, 0, 30000, 65535, 30000, 32768)), [WHITE, (117,) * 3, (186,) * 3]),
        # Colours of 16 bits: the key differs from its neighbours in the lower byte only.
        (
            png(3, 16, 2, shorts(1000, 0, 7, 1001, 0, 7, 1000, 0, 8), (b"tRNS", shorts(1000, 0, 7))),
            [WHITE, (3, 0, 0), (3, 0, 0)],
        ),
        (png(2, 16, 6, shorts(60000, 0, 0, 0, 60000, 0, 0, 65535)), [WHITE, (234, 0, 0)]),
        # Fewer bits: the key is in the file's numbers, 0 to 3 and 0 to 15.
        (png(4, 2, 0, bytes([0b00011011]), (b"tRNS", shorts(1))), [(0,) * 3, WHITE, (170,) * 3, WHITE]),
        (png(2, 4, 0, bytes([0x5A]), (b"tRNS", shorts(5))), [WHITE, (170,) * 3]),
        (png(2, 1, 0, bytes([0b01000000]), (b"tRNS", shorts(0))), [WHITE, WHITE]),
        (png(3, 8, 0, bytes([10, 11, 12]), (b"tRNS", shorts(11))), [(10,) * 3, WHITE, (12,) * 3]),
        (png(2, 8, 2, bytes([1, 2, 3, 1, 2, 4]), (b"tRNS", shorts(1, 2, 3))), [WHITE, (1, 2, 4)]),
        # A palette whose second colour is clear, and its third half black.
        (png(3, 2, 3, b"\x18", (b"PLTE", bytes(9)), (b"tRNS", b"\xff\0\x80")), [(0,) * 3, WHITE, (127,) * 3]),
    ],
)  # fmt: skip
def test_transparency_is_white_whatever_the_depth(data, expected):
    for image in (open_image(data), images.open_pixels(data, 224)):
        for x, colour in enumerate(expected):
            assert image.getpixel((x, 0)) == pytest.approx(colour, abs=1), x


@pytest.mark.parametrize("mode", ["I", "I;16", "F", "La", "RGBa", "PA"])
def test_transparency_of_images_in_memory(mode):
    """Opened by the user: a key of grey, or alpha that is multiplied in already."""
    if mode in ("I", "I;16", "F"):
        values = np.array([[1000, 1001]], dtype={"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode])
        image = Image.fromarray(values)
        image.info["transparency"] = 1000
        clear, solid = images.to_rgb(image).getpixel((0, 0)), images.to_rgb(image).getpixel((1, 0))
        assert clear == WHITE and solid != WHITE
    elif mode == "PA":
        image = Image.new("P", (1, 1), 80).convert("PA")
        image.putalpha(0)
        assert images.to_rgb(image).getpixel((0, 0)) == WHITE
    else:
        image = Image.new({"La": "LA", "RGBa": "RGBA"}[mode], (1, 1), (80, 0) if mode == "La" else (80, 80, 80, 0))
        assert images.to_rgb(image.convert(mode)).getpixel((0, 0)) == WHITE
