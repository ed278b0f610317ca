"""How images are read by the keys that take the official code's ways."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from lexlip_data.errors import BrokenImage
from lexlip_data.loading.datasets import CaptionPairs, EvalImages
from lexlip_data.sources.images import Reading, open_pixels

SIZE = 32


def encoded(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(64, 48), (SIZE, SIZE)])
def test_a_file_that_is_cut_short_is_read_only_where_asked_for(kind, size):
    whole = encoded(noise(*size), kind)
    data = whole[: -len(whole) // 8]
    with pytest.raises(BrokenImage, match="truncated|cut|cannot be decoded"):
        open_pixels(data, SIZE)
    pixels, wanted = (np.asarray(open_pixels(file, SIZE, Reading(truncated=True))) for file in (data, whole))
    assert pixels.shape == (size[1], size[0], 3)
    same = (pixels == wanted).all(axis=(1, 2))
    assert same[:8].all() and not same[-1]
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # the process's switch is as it was
    with pytest.raises(BrokenImage):
        open_pixels(data[:20], SIZE, Reading(truncated=True))


def test_an_image_is_not_turned_where_not_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (noise(64, 48), noise(SIZE, SIZE)):
        data = encoded(image, "JPEG", exif=exif, quality=95)
        turned, stored = (np.asarray(open_pixels(data, SIZE, Reading(turned=turned))) for turned in (True, False))
        assert np.array_equal(turned, np.rot90(stored, -1)) and stored.shape[1] == image.width


def test_transparent_pixels_show_their_colours_where_asked_for():
    red = Image.new("RGBA", (40, 40), (200, 10, 10, 0))
    palette = Image.new("RGB", (40, 40), (200, 10, 10)).convert("P", palette=Image.Palette.ADAPTIVE)
    grey = Image.new("LA", (40, 40), (90, 0))
    for data, colour in (
        (encoded(red, "PNG"), (200, 10, 10)), (encoded(palette, "PNG", transparency=0), (200, 10, 10)),
        (encoded(grey, "PNG"), (90, 90, 90)), (encoded(red.convert("RGB"), "PNG"), (200, 10, 10)),
    ):  # fmt: skip
        pixels = np.asarray(open_pixels(data, SIZE, Reading(on_white=False)))
        assert (pixels == colour).all(), pixels[0, 0]
    assert (np.asarray(open_pixels(encoded(red, "PNG"), SIZE)) == 255).all()


def test_a_large_jpeg_is_decoded_whole_where_asked_for():
    data = encoded(noise(400, 320), "JPEG")
    assert np.asarray(open_pixels(data, SIZE)).shape == (80, 100, 3)
    assert np.asarray(open_pixels(data, SIZE, Reading(reduced=False))).shape == (320, 400, 3)


def test_what_is_augmented_is_decoded_whole(monkeypatch):
    read = []
    monkeypatch.setattr(
        "lexlip_data.loading.datasets.open_pixels", lambda data, size, reading: read.append(reading) or noise(40, 40)
    )

    class One:
        name, split = "one", "train"
        caption_counts = np.array([1])
        image_id = staticmethod(lambda i: "0")
        caption = staticmethod(lambda i, number: "a caption")
        image_bytes = staticmethod(lambda i: b"")
        where = staticmethod(lambda i: "nowhere")
        __len__ = staticmethod(lambda: 1)

    source = type("Source", (One,), {"__len__": lambda self: 1})()
    cut = Reading(truncated=True)
    for keys in ("vit", "vit_randaug"):
        CaptionPairs([source], keys, SIZE, reading=cut)[0]
    EvalImages([source], "vit", SIZE, cut)[0]
    assert read == [cut, Reading(truncated=True, reduced=False), cut]
