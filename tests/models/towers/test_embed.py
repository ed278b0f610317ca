"""Towers of Hugging Face inside a model folder, in 32, 16 and 8 bits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertModel

from lexlip.errors import UserError
from lexlip.models.towers import load_image_tower, load_text_tower
from lexlip.models.towers.embed import embed_tower
from lexlip.models.towers.hf_images import EIGHT_BITS

TEXTS = ["a dog runs on the beach", "two beaches", ""]
SIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
BOUNDS = [("full", 0.0, 0.0), ("half", 5e-3, 1e-5), ("int8", 5e-2, 1e-3)]  # of a state of spread 1; of 1 - cosine


@pytest.fixture
def texts(sentence_folder):
    """A BERT with a layer after pooling, as sentence-transformers keeps them; the weights of both in pickles."""
    folder = sentence_folder({"pooling_mode_mean_tokens": True}, ("Dense", "2_Dense"))
    model = BertModel(BertConfig(vocab_size=500, max_position_embeddings=12, **SIDE))
    model.config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "2_Dense").mkdir()
    linear = {"linear.weight": torch.randn(6, 64), "linear.bias": torch.randn(6)}
    torch.save(linear, folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"in_features": 64, "out_features": 6}))
    return load_text_tower(str(folder))


def size_of(folder):
    (file,) = folder.glob("*.safetensors")
    return file.stat().st_size


@pytest.mark.parametrize(("storage", "near", "turned"), BOUNDS)
def test_texts_are_encoded_as_outside(texts, tmp_path, storage, near, turned):
    inside = embed_tower(texts, tmp_path, "text", storage)
    again = load_text_tower(inside, trust_sources=False, folder=tmp_path)
    found, wanted = again.features(TEXTS), texts.features(TEXTS)
    assert 0.9 < wanted.states[wanted.mask].std() < 1.1
    assert (found.states - wanted.states).abs().max() <= near
    assert (1 - cosine_similarity(found.pooled, wanted.pooled)).max() <= turned + 1e-6
    assert (again.weights_hash == texts.weights_hash) == (storage == "full")
    assert not list((tmp_path / "text_tower").rglob("*.bin"))  # which would not be fetched from the hub


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Dinov2"])
def test_images_in_8_bits(kind, tmp_path, photo):
    config = {**SIDE, "image_size": 32, "patch_size": 8}
    if kind == "Dinov2":
        del config["intermediate_size"]
    source = f"{kind}Model" if kind == "Dinov2" else f"{kind}VisionModel"
    config = getattr(transformers, f"{source.removesuffix('Model')}Config")(**config)
    getattr(transformers, source + "WithProjection" * (kind == "CLIP"))(config).save_pretrained(tmp_path / "source")
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    if kind == "Siglip":
        processor = {"size": {"height": 32, "width": 32}}
    name = "Bit" if kind == "Dinov2" else kind
    getattr(transformers, f"{name}ImageProcessor")(**processor).save_pretrained(tmp_path / "source")
    tower = load_image_tower(f"hf:{tmp_path / 'source'}")
    again = load_image_tower(embed_tower(tower, tmp_path, "image", "int8"), trust_sources=False, folder=tmp_path)
    found, wanted = (one.features(one.preprocess(photo)[None]) for one in (again, tower))
    assert (1 - cosine_similarity(found, wanted, dim=-1)).max() < 1e-3 and not torch.equal(found, wanted)
    assert again.weights_hash != tower.weights_hash


def test_a_folder_holds_the_weights_of_its_last_export_alone(texts, tmp_path):
    sizes = {}
    for storage in ("int8", "half", "full", "int8"):
        embed_tower(texts, tmp_path, "text", storage)
        sizes[storage] = size_of(tmp_path / "text_tower")  # of the only file
    assert sizes["int8"] < 0.6 * sizes["half"] < 0.35 * sizes["full"]


@pytest.mark.parametrize("storage", ["full", "half", "int8"])
def test_a_transformer_in_a_folder_of_its_own(texts, tmp_path, storage):
    source = Path(texts.reference.removeprefix("st:"))
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (source / "0_Transformer").mkdir()
    for file in [file for file in source.iterdir() if file.is_file()]:
        file.rename(source / "0_Transformer" / file.name)
    (source / "modules.json").write_text(json.dumps(modules))
    inside = embed_tower(load_text_tower(str(source)), tmp_path / "model", "text", storage)
    again = load_text_tower(inside, trust_sources=False, folder=tmp_path / "model")
    assert (1 - cosine_similarity(again.features(TEXTS).pooled, texts.features(TEXTS).pooled)).max() < 1e-3
    kept = sorted(str(file.relative_to(tmp_path / "model")) for file in (tmp_path / "model").rglob("*.safetensors"))
    name = EIGHT_BITS if storage == "int8" else "model.safetensors"
    assert kept == [f"text_tower/0_Transformer/{name}", "text_tower/2_Dense/model.safetensors"]


def test_other_checkpoints_in_a_folder_stay_out(bert_folder, tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        shutil.copytree(bert_folder, bert_folder / "checkpoint-5", dirs_exist_ok=True)
        (bert_folder / "checkpoint-5" / "model.safetensors").rename(bert_folder / "checkpoint-5" / name)
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        embed_tower(load_text_tower(str(bert_folder)), tmp_path / "model", "text", "half")
        kept = [file for file in (tmp_path / "model").rglob("*") if file.suffix in (".safetensors", ".bin")]
        assert [file.parent.name for file in kept] == ["text_tower"]
        shutil.rmtree(bert_folder / "checkpoint-5")


def test_a_damaged_file_is_told(texts, tmp_path):
    inside = embed_tower(texts, tmp_path, "text", "int8")
    file = tmp_path / "text_tower" / EIGHT_BITS
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="text_tower: its weights cannot be loaded"):
        load_text_tower(inside, trust_sources=False, folder=tmp_path)
