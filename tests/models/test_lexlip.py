"""The model as users hold it: vectors, words, folders."""

import json

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model, check_towers
from lexlip_data.errors import BrokenImage


@pytest.fixture
def model(make_model):
    return make_model(drop_rate=0.3)


def test_vectors_are_the_formula(model, make_batch):
    batch = make_batch()
    with torch.no_grad():
        model.eval()
        logits = model.text_head(model.text_encoder(batch["text_ids"], batch["text_mask"]))
        logits = logits.masked_fill(batch["text_mask"][..., None] == 0, -1e6)
        text = torch.log1p(F.relu(logits)).max(1).values
        image = torch.log1p(F.relu(model.image_head(model.image_encoder(batch["image"])))).max(1).values
    torch.testing.assert_close(model.encode_text(batch["text_ids"], batch["text_mask"], normalize=False), text)
    torch.testing.assert_close(model.encode_image(batch["image"], normalize=False), image)
    vectors = model.encode_image(batch["image"])
    torch.testing.assert_close(vectors, image / image.norm(dim=1, keepdim=True))
    assert vectors.dtype == torch.float32


def test_encoding_leaves_training_mode_and_draws_no_dropout(model, make_batch):
    batch = make_batch()
    model.train()
    once = model.encode_text(batch["text_ids"], batch["text_mask"])
    assert torch.equal(once, model.encode_text(batch["text_ids"], batch["text_mask"]))
    assert model.training and not once.requires_grad


def test_a_caption_does_not_depend_on_its_batch(model, make_batch):
    batch = make_batch()
    together = model.encode_text(batch["text_ids"], batch["text_mask"])
    for row, (ids, mask) in enumerate(zip(batch["text_ids"], batch["text_mask"], strict=True)):
        n = int(mask.sum())
        torch.testing.assert_close(model.encode_text(ids[None, :n], mask[None, :n])[0], together[row])


def test_strings_images_and_terms(make_worded, tiny_data):
    model = make_worded()
    tokenizer = model.tokenizer
    texts = ["red dot beside a ring", "the green box " * 20]
    vectors = model.encode_text(texts)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=8, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 8)
    torch.testing.assert_close(vectors, model.encode_text(batch["input_ids"], batch["attention_mask"]))
    torch.testing.assert_close(model.encode_text(texts[0])[0], vectors[0])
    image = Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8))
    white = torch.ones(1, 3, 32, 32)  # (1 - 0.5) / 0.5
    torch.testing.assert_close(model.encode_image(image), model.encode_image(white))

    row = torch.zeros(2, tiny_data["words"])
    row[0, [7, 9]] = torch.tensor([0.25, 0.75])
    light, heavy = tokenizer.convert_ids_to_tokens([7, 9])
    assert model.lexicon(row) == [[(heavy, 0.75), (light, 0.25)], []]
    assert len(model.lexicon(row, top_k=1)[0]) == 1


def test_batches_files_and_nothing_at_all(make_worded, tiny_data, tmp_path):
    model = make_worded()
    texts = ["red dot", "the green box on a ring", "blue", "a small box"]
    torch.testing.assert_close(model.encode_text(texts, batch_size=3), model.encode_text(texts))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    together = model.encode_image(images)
    torch.testing.assert_close(model.encode_image(images, batch_size=2), together)
    images[3].save(tmp_path / "a.png")
    mixed = model.encode_image([tmp_path / "a.png", images[0], str(tmp_path / "a.png")])
    torch.testing.assert_close(mixed, together[[3, 0, 3]])
    torch.testing.assert_close(model.encode_image(str(tmp_path / "a.png")), together[3:4])
    for empty in (model.encode_text([]), model.encode_image([]), model.encode_image(torch.zeros(0, 3, 32, 32))):
        assert empty.shape == (0, tiny_data["words"])


def test_what_cannot_be_encoded_is_named(make_worded, tmp_path):
    model = make_worded()
    with pytest.raises(TypeError, match="item 1 is of type NoneType, not a string"):
        model.encode_text(["red dot", None])
    with pytest.raises(TypeError, match="item 0 is of type ndarray, not a PIL image or the path of one"):
        model.encode_image([np.zeros((4, 4, 3), dtype=np.uint8)])
    with pytest.raises(ValueError, match="batch_size=0"):
        model.encode_text(["red dot"], batch_size=0)
    (tmp_path / "no.jpg").write_text("no image")
    with pytest.raises(BrokenImage, match="no.jpg"):
        model.encode_image([tmp_path / "no.jpg"])
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        model.encode_image(tmp_path / "none.jpg")


def test_without_tokenizer_or_mask_the_message_says_so(model):
    with pytest.raises(ValueError, match="tokenizer"):
        model.encode_text("red dot")
    with pytest.raises(ValueError, match="tokenizer"):
        model.lexicon(torch.zeros(1, 40))
    with pytest.raises(ValueError, match="attention_mask"):
        model.encode_text(torch.ones(1, 3, dtype=torch.long))


def test_a_saved_model_comes_back(make_worded, make_batch, tmp_path):
    model = make_worded().eval()
    model.save_pretrained(tmp_path / "m")
    again = LexLIP.from_pretrained(tmp_path / "m")
    batch = make_batch()
    assert torch.equal(again.encode_image(batch["image"]), model.encode_image(batch["image"]))
    assert torch.equal(again.encode_text(["red dot"]), model.encode_text(["red dot"]))
    assert not again.training and again.config == model.config


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_saved_model_comes_back_for_another_image_size(model, make_batch, tmp_path):
    model.save_pretrained(tmp_path / "m")
    change_config(tmp_path / "m", image_size=48)
    again = LexLIP.from_pretrained(tmp_path / "m")
    assert again.image_encoder.backbone.patch_embed.grid_size == (6, 6)
    images = make_batch(size=48)["image"]
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-5)


def test_a_folder_that_is_no_model_is_refused_by_name(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    change_config(tmp_path / "m", text={**model.config.text, "num_hidden_layers": 3})
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'm'} does not fit.*\n.*layer.2.* not in the file"):
        LexLIP.from_pretrained(tmp_path / "m")
    change_config(tmp_path / "m", wings=2)
    with pytest.raises(CheckpointError, match="config.json.*wings"):
        LexLIP.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no model folder"):
        LexLIP.from_pretrained(tmp_path / "m")


def test_the_towers_may_differ_in_width(make_config, make_batch):
    kwargs = {**make_config().vit_kwargs, "embed_dim": 24}
    config = make_config(input_image_embed_size=24, vit_kwargs=kwargs)
    model = build_model(LexLIP, config)
    assert model.image_head.dense.weight.shape == (16, 24)
    assert torch.equal(model.image_head.decoder.weight, model.text_head.decoder.weight)
    vectors = model.encode_image(make_batch()["image"])
    assert vectors.shape == (6, 40)
    model.lexicon_image(make_batch()["image"]).sum().backward()
    assert model.image_head.dense.weight.grad is not None


def test_a_convolutional_tower(make_model, make_batch):
    model = make_model(**tiny.CONVOLUTIONAL).eval()
    images = make_batch(size=64)["image"]
    with torch.no_grad():
        logits = model.image_head(model.image_encoder(images))
    assert logits.shape == (6, 2 * 2, 40)
    torch.testing.assert_close(model.encode_image(images, normalize=False), torch.log1p(F.relu(logits)).max(1).values)


def test_the_image_head_starts_as_a_copy_of_its_own(make_config):
    model = build_model(LexLIP, make_config())
    for one, two in zip(model.image_head.parameters(), model.text_head.parameters(), strict=True):
        assert torch.equal(one, two) and one is not two and one.data_ptr() != two.data_ptr()
    assert model.text_head.decoder.weight.data_ptr() != model.text_encoder.word_embeddings.data_ptr()  # not tied


def test_a_berts_head_is_taken_over(make_config, make_batch, saved_bert):
    bert, folder = saved_bert
    model = build_model(LexLIP, make_config(text_pretrained=True, text_model=folder)).eval()
    batch = make_batch()
    with torch.no_grad():
        wanted = bert(input_ids=batch["text_ids"], attention_mask=batch["text_mask"]).logits
        logits = model.text_head(model.text_encoder(batch["text_ids"], batch["text_mask"]))
    torch.testing.assert_close(logits, wanted)
    assert torch.equal(model.image_head.decoder.bias, bert.cls.predictions.bias)


def test_a_bert_that_is_not_there_is_refused_by_name(make_config, tmp_path):
    with pytest.raises(ConfigError, match="nothing_here"):
        build_model(LexLIP, make_config(text_pretrained=True, text_model=str(tmp_path / "nothing_here")))


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("input_image_embed_size", 768, 16), ("vocab_size", 41, 40), ("patch_size", 16, 8), ("max_text_len", 17, 16),
        ("hidden_size", 32, 16), ("input_text_embed_size", 32, 16),
    ],
)  # fmt: skip
def test_keys_that_contradict_the_towers_are_refused(make_config, key, value, fact):
    model = build_model(LexLIP, make_config())
    with pytest.raises(ConfigError, match=rf"{key}={value}.*{fact}"):
        check_towers(model, make_config().changed(**{key: value}))
