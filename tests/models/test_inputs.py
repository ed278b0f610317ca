"""What may be given to `encode_text`, `encode_image` and `lexicon`, and what is said of everything else."""

import pytest
import tiny
import torch
from PIL import Image

from lexlip.errors import EncodingError
from lexlip.models.inputs import check_pixels


@pytest.fixture
def worded(make_worded):
    return make_worded()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tower", [{}, tiny.CONVOLUTIONAL], ids=["beit", "convolutional"])
def test_a_model_in_half_precision_encodes_both_sides(make_worded, kind, tower):
    model = make_worded(**tower)
    images, texts = [Image.new("RGB", (80, 50), "red"), Image.new("RGB", (40, 40))], ["red dot", "a box"]
    whole = model.encode_image(images), model.encode_text(texts)
    model.to(kind)
    half = model.encode_image(images), model.encode_text(texts)
    for one, two in zip(whole, half, strict=True):
        assert two.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one, two).min() > 0.98
    pixels = torch.zeros(1, 3, 32, 32)
    torch.testing.assert_close(model.encode_image(pixels.double()), model.encode_image(pixels.to(kind)))


def test_a_dense_model_in_half_precision_encodes_images(make_model):
    model = make_model(head="dense", training_mode="con", embed_dim=8).half()
    assert model.encode_image([Image.new("RGB", (80, 50), "red")]).shape == (1, 8)


PIXELS = {
    "one image": (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\).*\(B, 3, H, W\).*pixels\[None\]"),
    "channels last": (torch.zeros(1, 32, 32, 3), r"shape \(1, 32, 32, 3\)"),
    "grey": (torch.zeros(1, 1, 32, 32), r"shape \(1, 1, 32, 32\)"),
    "uint8": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"torch.uint8.*normalised.*/ 255"),
    "bool": (torch.zeros(1, 3, 32, 32, dtype=torch.bool), "torch.bool"),
    "0 to 255": (torch.full((1, 3, 32, 32), 255.0), r"from 255 to 255.*\[-1, 1\]"),
    "nan": (torch.full((1, 3, 32, 32), float("nan")), "from nan to nan"),
    "infinite": (torch.full((1, 3, 32, 32), float("-inf")), "from -inf to -inf"),
    "no side": (torch.zeros(1, 3, 0, 32), "0 x 32 pixels"),
    "no multiple": (torch.zeros(1, 3, 30, 32), "30 x 32 pixels: sides must be multiples of 8"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_tensors_that_are_no_normalised_images_get_one_line(worded, name):
    pixels, told = PIXELS[name]
    with pytest.raises(EncodingError, match=told) as caught:
        worded.encode_image(pixels)
    assert "\n" not in str(caught.value)


def test_pixels_of_other_means_pass():
    check_pixels(torch.full((1, 3, 30, 30), 2.64), None)
    check_pixels(torch.zeros(0, 3, 32, 32), 8)


def test_token_ids_are_checked_before_the_model_runs(worded):
    ids = torch.ones(2, 5, dtype=torch.long)
    for wrong, mask, told in (
        (ids[0], ids[0], r"shape \(5,\)"), (ids.float(), ids, "torch.float32"), (ids, ids[:, :4], r"is \(2, 4\)"),
        (ids, [[1] * 5] * 2, "attention_mask is list"), (ids * 10**6, ids, "from 1000000 to 1000000"),
        (-ids, ids, "-1"),
        (torch.ones(1, 99, dtype=torch.long), torch.ones(1, 99), "99 tokens"), (ids[:, :0], ids[:, :0], "0 tokens"),
    ):  # fmt: skip
        with pytest.raises(EncodingError, match=told):
            worded.encode_text(wrong, mask)
    assert torch.equal(worded.encode_text(ids.int(), ids), worded.encode_text(ids, ids))


@pytest.mark.parametrize("text", ["a \ud83d dog", "\udc80"])
def test_half_a_character_is_told(worded, text):
    with pytest.raises(EncodingError, match=r"text 1 holds half a character \(a lone surrogate, '\\ud") as caught:
        worded.encode_text(["red dot", text])
    assert str(caught.value).encode()  # the message itself can be printed
    worded.encode_text("a \U0001f415 dog")


def test_what_is_no_list_is_refused(worded):
    for texts in (5, None, b"red", {"red": 1}, {"red"}):
        with pytest.raises(TypeError, match=f"a {type(texts).__name__} is neither a string nor a list"):
            worded.encode_text(texts)
    for images in (5, None, b"a.png", {"a.png": 1}):
        with pytest.raises(TypeError, match="neither a PIL image or the path of one nor a list"):
            worded.encode_image(images)
    assert torch.equal(worded.encode_text(iter(["red dot"])), worded.encode_text("red dot"))


def test_lexicon_takes_a_batch_of_vectors_alone(worded):
    vectors = worded.encode_text(["red dot"])
    for wrong, told in (
        ("red dot", "not str"), (["red dot"], "not list"), (vectors[0], r"vectors\[None\]"),
        (vectors[:, :5], r"\(1, 5\)"),
        (vectors.long(), "torch.int64"),
    ):  # fmt: skip
        with pytest.raises(EncodingError, match=told):
            worded.lexicon(wrong)
    for top_k in (0, -1, 2.5, True):
        with pytest.raises(EncodingError, match=f"top_k={top_k}"):
            worded.lexicon(vectors, top_k)
    assert worded.lexicon(vectors.to_sparse()) == worded.lexicon(vectors)
