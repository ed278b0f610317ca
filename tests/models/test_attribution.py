"""Heat maps of terms: against the heads' own numbers, for every way in which a head pools patches."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import CONVOLUTIONAL

from lexlip.errors import EncodingError
from lexlip.models.attribution import grid_of, seen
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.ops.fused import pooled
from lexlip.ops.max_logits import saturate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def test_the_maximum_of_a_map_is_the_terms_weight_and_lies_where_the_head_found_it(make_worded, photo):
    torch.manual_seed(0)
    model = make_worded()
    terms = list(range(model.vocab_size))
    maps = model.attribute(photo, terms)
    assert maps.shape == (model.vocab_size, 4, 4) and maps.dtype == torch.float32 and (maps >= 0).all()
    head, pixels = model.image_head, model.image_transform()(photo)[None]
    with torch.no_grad():
        hidden = head.transform(model.image_encoder(pixels))
        _, token = pooled(hidden, head.decoder.weight, head.decoder.bias, None, False, True)
    weights = model.encode_image(photo, normalize=False)[0]
    on_patch = token[0] > 0  # token 0 is [CLS], which has no place
    assert 0 < on_patch.sum() < len(on_patch)
    torch.testing.assert_close(maps.amax((1, 2))[on_patch], weights[on_patch])
    assert (maps.amax((1, 2)) <= weights + 1e-5).all()
    logits = model.attribute(photo, terms, saturated=False).flatten(1)
    assert (logits.argmax(1) + 1)[on_patch].tolist() == token[0][on_patch].tolist()
    torch.testing.assert_close(saturate(logits), maps.flatten(1))
    # By name as by number, one word alone, and pixels as they are.
    word = model.tokenizer.convert_ids_to_tokens(7)
    for same in (model.attribute(photo, word), model.attribute(photo, [7]), model.attribute(pixels[0], 7)):
        torch.testing.assert_close(same, maps[7:8])
    assert model.patch_pooling == "max" and not model.train().attribute(photo, 7).requires_grad and model.training


def test_a_map_of_features_has_the_shape_of_its_image(make_model):
    model = make_model(**CONVOLUTIONAL)
    pixels = torch.randn(3, 64, 128)
    maps = model.attribute(pixels, [1, 2])
    assert maps.shape == (2, 2, 4)
    torch.testing.assert_close(maps.amax((1, 2)), model.encode_image(pixels[None], normalize=False)[0, [1, 2]])


@pytest.mark.parametrize("words", [[], ["no such word"], "no such word", [-1], [10**6], [True], [None]])
def test_what_is_no_term(make_worded, photo, words):
    model = make_worded()
    with pytest.raises(EncodingError, match="no term of this model|no words"):
        model.attribute(photo, words)
    with pytest.raises(EncodingError, match="no term of this model|no words"):
        model.attribute_text("red dot", words)


def test_names_need_a_tokenizer_and_pixels_a_shape(make_model):
    model = make_model()
    with pytest.raises(EncodingError, match="no tokenizer"):
        model.attribute(torch.randn(3, 32, 32), "red")
    with pytest.raises(EncodingError, match="no tokenizer"):
        model.attribute_text("red", 1)
    with pytest.raises(EncodingError, match="multiples of 8"):
        model.attribute(torch.randn(3, 33, 32), 1)


@pytest.mark.parametrize(
    "changes", [{}, {"own_weights": True}, {"inactive_terms": ["special", "stop"]}, {"activation": "log1p_twice"}]
)
def test_a_texts_pieces_whatever_the_heads(make_worded, photo, changes):
    model = make_worded(**changes)
    maps, weights = model.attribute(photo, range(model.vocab_size)), model.encode_image(photo, normalize=False)[0]
    assert (maps.amax((1, 2)) <= weights + 1e-5).all()  # a term that may not be active has no place
    found = model.attribute_text("red dot", range(model.vocab_size))
    assert found.pieces == ["[CLS]", "red", "dot", "[SEP]"] and found.pooling == "max"
    torch.testing.assert_close(found.weights.amax(1), model.encode_text("red dot", normalize=False)[0])


# --- heads on frozen towers ---

TERMS = torch.tensor([2, 5, 6, 9])  # of a vocabulary of 12


@pytest.fixture
def frozen_model(tmp_path, livelier):
    """Random heads on a tiny tower of timm."""

    def make(architecture, view, activation="log1p"):
        file = tmp_path / f"{architecture}.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if not file.exists():
                save_file(timm.create_model(architecture, num_classes=0).state_dict(), file)
            one = f"timm:{architecture}@{file}#{view}"
            reference = f"{one} + {one}" if view == "mean" else one
            facts = {"image_tower": reference, "image_width": 1, "vocab_size": 12, "terms": 4, "text_head": "table"}
            width = FrozenLexLIP(FrozenConfig(**facts, pooled_width=4)).image_tower.width
            facts["image_width"] = width
            more = {"pooled_width": 4, "width": 8, "row_terms": 2, "activation": activation}
            model = FrozenLexLIP(FrozenConfig(**facts, **more))
        livelier(model).lexicon_heads.start(TERMS, None, torch.zeros(4))
        return model.eval()

    return make


@pytest.mark.parametrize(("architecture", "view"), [("test_efficientnet", "mean"), ("test_vit", "cls+mean")])
def test_of_an_average_the_mean_of_the_patches_logits_is_the_logit(frozen_model, photo, architecture, view):
    model = frozen_model(architecture, view)
    assert model.patch_pooling == "mean"
    logits = model.attribute(photo, TERMS.tolist(), saturated=False)
    assert logits.shape[1] == logits.shape[2] > 1 and logits.std() > 0
    weights = model.encode_image(photo, normalize=False)[0]
    torch.testing.assert_close(saturate(logits.mean((1, 2))), weights[TERMS], rtol=1e-4, atol=1e-5)
    never = model.attribute(photo, [3], saturated=False)
    assert (never == -torch.inf).all() and not model.attribute(photo, 3).any()


@pytest.mark.parametrize("activation", ["log1p", "log1p_twice"])
def test_of_all_patches_the_maximum_is_the_weight(frozen_model, photo, activation):
    model = frozen_model("test_vit", "patches", activation)
    assert model.patch_pooling == "max"
    maps = model.attribute(photo, TERMS.tolist())
    torch.testing.assert_close(maps.amax((1, 2)), model.encode_image(photo, normalize=False)[0, TERMS])


def test_a_tower_that_says_nothing_of_patches(frozen_model, photo):
    model = frozen_model("test_vit", "cls")
    assert model.patch_pooling is None
    with pytest.raises(EncodingError, match="#cls says nothing of patches"):
        model.attribute(photo, 5)


def test_a_text_of_a_table_is_the_sum_of_its_pieces(frozen):
    from lexlip import LexLIP

    model = LexLIP.from_pretrained(frozen.folder("lookup"), trust_sources=True)
    found = model.attribute_text("a red box, a red box", range(model.vocab_size))
    assert found.pieces[:3] == ["a", "red", "box"] and found.pooling == "sum"
    weights = model.encode_text("a red box, a red box", normalize=False)[0]
    torch.testing.assert_close(found.weights.sum(1), weights)
    assert model.attribute_text("", ["red"]).weights.shape == (1, 0)


def test_a_text_of_a_tower_has_an_expansion(frozen):
    from lexlip import LexLIP

    model = LexLIP.from_pretrained(frozen.folder("contextual"), trust_sources=True)
    found = model.attribute_text("a red box", range(model.vocab_size))
    assert found.pieces[-1] == "[text]" and "red" in found.pieces
    torch.testing.assert_close(found.weights.sum(1), model.encode_text("a red box", normalize=False)[0])


# --- which part of an image ---


@pytest.mark.parametrize(
    ("size", "box"),
    [((400, 300), (0.125, 0, 0.875, 1)), ((300, 400), (0, 0.125, 1, 0.875)), ((64, 64), (0, 0, 1, 1)),
     ((5000, 100), (0.49, 0, 0.51, 1))],
)  # fmt: skip
def test_the_middle_square_is_seen(make_model, size, box):
    assert make_model(image_size=128).seen(size) == pytest.approx(box, abs=0.01)


def test_other_transforms():
    from torchvision import transforms as tv

    squashed = tv.Compose([tv.Resize((96, 96)), tv.ToTensor(), tv.Normalize(0.4, 0.3)])
    assert seen(squashed, (640, 200)) == pytest.approx((0, 0, 1, 1), abs=0.01)
    cropped = tv.Compose([tv.Resize(128), tv.CenterCrop(112), tv.ToTensor()])
    assert seen(cropped, (500, 500)) == pytest.approx((1 / 16, 1 / 16, 15 / 16, 15 / 16), abs=0.01)


def test_grids():
    assert grid_of(49, 224, 224) == (7, 7) and grid_of(8, 64, 128) == (2, 4) and grid_of(1, 9, 9) == (1, 1)
    with pytest.raises(EncodingError, match="make no grid"):
        grid_of(50, 224, 224)


# --- whether maps show what is there ---


@pytest.mark.slow
def test_the_word_of_the_left_drawing_is_strongest_on_the_left():
    """200 pairs of drawings side by side, with the quickstart's model; chance is one half."""
    demo = Path(os.environ.get("LEXLIP_DEMO") or ROOT)
    if not (demo / "runs/quickstart/model").is_dir():
        pytest.skip("needs the quickstart's runs/ and data/; LEXLIP_DEMO names their folder")
    import pyarrow as pa

    from lexlip import LexLIP
    from lexlip_data.sources.images import open_image

    model = LexLIP.from_pretrained(demo / "runs/quickstart/model")
    drawings = []
    for split in ("test", "val"):
        with pa.memory_map(str(demo / f"data/openmoji/openmoji_{split}.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
            drawings += zip(map(open_image, table["image"].to_pylist()), table["caption"].to_pylist())
    vocabulary = model.tokenizer.get_vocab()
    vectors = model.encode_image([image for image, _ in drawings], normalize=False)
    rng, right = np.random.default_rng(0), []
    while len(right) < 200:
        left, other = rng.choice(len(drawings), 2, replace=False)
        words = [word for word in " ".join(drawings[left][1]).lower().split() if word in vocabulary]
        word = max(words, key=lambda word: vectors[left, vocabulary[word]], default=None)
        # A word of the left drawing that the right one has not.
        if word is None or vectors[left, vocabulary[word]] <= 0 or vectors[other, vocabulary[word]] > 0:
            continue
        one, two = drawings[left][0], drawings[other][0]
        both = Image.new("RGB", (2 * one.width, one.height), "white")
        both.paste(one, (0, 0))
        both.paste(two, (one.width, 0))
        # At the size that the model learned drawings of, and cut to the middle square as any image is.
        whole = torch.cat([model.image_transform()(image) for image in (one, two)], 2)
        columns = [model.attribute(image, word, saturated=False)[0].amax(0) for image in (whole, both)]
        right.append([bool(c[: len(c) // 2].max() > c[len(c) // 2 :].max()) for c in columns])
    whole, cut = np.mean(right, axis=0)
    print(f"\nleft: {whole:.1%} of whole pairs, {cut:.1%} of the middle squares")
    assert whole >= 0.95 and cut >= 0.8
