"""Towers of every library from images to a model folder: cached, fitted two steps, written with the towers, opened."""

import json
import shutil

import frozen_tiny
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.errors import UserError
from lexlip.models.towers import load_image_tower, load_text_tower
from lexlip.models.towers.embed import embed_tower

SIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {**SIDE, "image_size": 32, "patch_size": 8}


def two_sides(kind, folder, tokenizer, length):
    """A CLIP or SigLIP with random weights; reads so many tokens."""
    text = {**SIDE, "vocab_size": len(tokenizer), "max_position_embeddings": length}
    text["eos_token_id"] = tokenizer.eos_token_id
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=PIXELS)
    if kind == "CLIP":
        config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = 12
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}}
    size |= {"crop_size": {"height": 32, "width": 32}} if kind == "CLIP" else {}
    getattr(transformers, f"{kind}ImageProcessor")(**size).save_pretrained(folder)
    return f"hf:{folder}", f"hf:{folder}"


def clip(folder, request):
    return two_sides("CLIP", folder, request.getfixturevalue("clip_tokenizer"), 16)


def siglip(folder, request):
    return two_sides("Siglip", folder, request.getfixturevalue("gemma_tokenizer"), 8)


def dinov2(folder, request):
    text = frozen_tiny.write_towers(folder / "st")[1]
    config = transformers.Dinov2Config(**{k: v for k, v in PIXELS.items() if k != "intermediate_size"})
    transformers.Dinov2Model(config).save_pretrained(folder / "dinov2")
    transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "dinov2"
    )
    return f"hf:{folder}/dinov2#patches", text


def open_clip(folder, request):
    library = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install -e '.[open_clip]'")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir()
    (folder / "tiny-whole.json").write_text(json.dumps(config))
    library.add_model_config(folder / "tiny-whole.json")
    weights = library.create_model("tiny-whole").state_dict()
    weights["token_embedding.weight"].mul_(20)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "w.safetensors")
    return (f"open_clip:tiny-whole@{folder}/w.safetensors",) * 2


@pytest.mark.parametrize("make", [clip, siglip, dinov2, open_clip])
def test_from_images_to_a_folder_with_its_towers(make, request, tmp_path):
    image, text = make(tmp_path / "towers", request)
    lexicon = frozen_tiny.write_towers(tmp_path / "lexicon")[1].removeprefix("st:")
    table = frozen_tiny.write_table(tmp_path / "data", 120)
    command = ["fit", "--data", table, "--image", image, "--text", text, "--lexicon", lexicon, "--steps", "2"]
    assert not main([*map(str, command), "--out", str(tmp_path / "model")])
    checkpoint = next((tmp_path / "model.work").glob("lexicon*/fit/checkpoints/step_00000002.ckpt"))
    assert not main(["export", str(checkpoint), str(tmp_path / "whole"), "--embed-towers"])
    photos, texts = [table.parent / f"{n}.png" for n in range(3)], ["a red box left", "The small boxs", ""]
    outside = LexLIP.from_pretrained(tmp_path / "model", trust_sources=True)
    wanted = [(outside.encode_image(photos, head=head), outside.encode_text(texts, head=head)) for head in HEADS]
    shutil.rmtree(tmp_path / "towers")
    inside = LexLIP.from_pretrained(tmp_path / "whole", trust_sources=False)
    for head, (images, captions) in zip(HEADS, wanted, strict=True):
        assert images.abs().sum() and captions.abs().sum()
        torch.testing.assert_close(inside.encode_image(photos, head=head), images, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(inside.encode_text(texts, head=head), captions, atol=1e-5, rtol=1e-4)


HEADS = ("lexicon", "dense")


def test_open_clip_s_texts_are_its_own(tmp_path, request, bert_tokenizer):
    """CLIP's BPE reads "beaches" as one token, BERT's pieces here are beach and ##es: both have its state."""
    _, reference = open_clip(tmp_path / "towers", request)
    import open_clip as library

    model = library.create_model("tiny-whole", pretrained=str(tmp_path / "towers" / "w.safetensors")).eval()
    tokenizer, texts = library.get_tokenizer("tiny-whole"), ["A dog runs", "two beaches."]
    states = []
    model.ln_final.register_forward_hook(lambda module, given, out: states.append(out))
    with torch.no_grad():
        pooled = model.encode_text(tokenizer(texts))
    tower = load_text_tower(reference, bert_tokenizer)
    found = tower.features(texts)
    pieces = [bert_tokenizer.convert_ids_to_tokens(row[mask].tolist()) for row, mask in zip(found.terms, found.mask)]
    assert pieces == [["a", "dog", "runs"], ["two", "beach", "##es", "."]]
    close = torch.testing.assert_close
    close(found.pooled, pooled)
    close(found.states[0, :3], states[0][0, 1:4])
    close(found.states[1], states[0][1, [1, 2, 2, 3]])
    assert tower.cut_texts(["dog " * 7, "dog " * 8]) == 1  # nine tokens with those of start and end
    assert tower.features(["dog " * 30]).mask.sum() == 7
    with pytest.raises(UserError, match="give the lexicon's tokenizer"):
        load_text_tower(reference)


def test_an_embedded_side_of_open_clip_is_checked(tmp_path, request):
    reference, _ = open_clip(tmp_path / "towers", request)
    tower = load_image_tower(reference)
    for storage, tolerance in (("full", 0.0), ("half", 2e-3), ("int8", 5e-2)):
        inside = embed_tower(tower, tmp_path, "image", storage)
        pixels = torch.rand(2, 3, 32, 32)
        again = load_image_tower(inside, trust_sources=False, folder=tmp_path)
        assert (again.features(pixels) - tower.features(pixels)).abs().max() <= tolerance
        assert again.facts()["preprocessing"] == tower.facts()["preprocessing"]
    file = tmp_path / "image_tower" / "one_side.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="one_side.safetensors is damaged or of another model"):
        load_image_tower(inside, trust_sources=False, folder=tmp_path)
