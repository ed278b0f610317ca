"""Image towers: their features are the library's own, whatever the library."""

import json
import pickle

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from lexlip.errors import UserError
from lexlip.models.towers import load_image_tower

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {**VISION, "image_size": 32, "patch_size": 8}
TEXT = {**VISION, "vocab_size": 40, "max_position_embeddings": 8}


def save(folder, model, processor):
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def clip(folder):
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=PIXELS, projection_dim=12)
    config.vision_config.projection_dim = 12
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, transformers.CLIPModel(config), processor)


def siglip(folder):
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=PIXELS)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return save(folder, transformers.SiglipModel(config), processor)


def dinov2(folder, **more):
    processor = transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    config = {**{k: v for k, v in PIXELS.items() if k != "intermediate_size"}, **more}
    if more:
        config = transformers.Dinov2WithRegistersConfig(**config)
        return save(folder, transformers.Dinov2WithRegistersModel(config), processor)
    return save(folder, transformers.Dinov2Model(transformers.Dinov2Config(**config)), processor)


def vit(folder):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return save(folder, transformers.ViTModel(transformers.ViTConfig(**PIXELS), add_pooling_layer=False), processor)


def processed(folder, image):
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt")


def stack(tower, *images):
    return torch.stack([tower.preprocess(image) for image in images])


def equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [clip, siglip])
def test_the_image_side_of_a_model_with_two(tmp_path, photo, make):
    model = make(tmp_path)
    inputs = processed(tmp_path, photo)
    with torch.no_grad():
        expected = model.get_image_features(**inputs)
        output = model.vision_model(**inputs)
    expected = getattr(expected, "pooler_output", expected)
    tower = load_image_tower(f"hf:{tmp_path}")
    assert tower.reference == f"hf:{tmp_path}#pooled" and tower.tokens == 1 and tower.width == expected.shape[1]
    equal(stack(tower, photo), inputs["pixel_values"])
    equal(tower.features(stack(tower, photo, photo)), expected[:, None].repeat(2, 1, 1))
    patches = load_image_tower(f"{tmp_path}#patches")
    states = output.last_hidden_state[:, (1 if make is clip else 0) :]
    equal(patches.features(stack(patches, photo)), states)
    assert (patches.tokens, patches.width) == (16, 16)


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2(tmp_path, photo, registers):
    model = dinov2(tmp_path, **({"num_register_tokens": registers} if registers else {}))
    with torch.no_grad():
        states = model(**processed(tmp_path, photo)).last_hidden_state
    patches = states[:, 1 + registers :]
    wanted = {
        "": states[:, :1], "#cls": states[:, :1], "#mean": patches.mean(1, keepdim=True), "#patches": patches,
        "#cls+mean": torch.cat([states[:, :1], patches.mean(1, keepdim=True)], -1),
    }  # fmt: skip
    for view, expected in wanted.items():
        tower = load_image_tower(f"{tmp_path}{view}")
        equal(tower.features(stack(tower, photo)), expected)
        assert (tower.tokens, tower.width) == expected.shape[1:]
    with pytest.raises(UserError, match="no pooled output"):
        load_image_tower(f"hf:{tmp_path}#pooled")


def test_vit_without_the_pooler_that_no_file_holds(tmp_path, photo):
    model = vit(tmp_path)
    with torch.no_grad():
        states = model(**processed(tmp_path, photo)).last_hidden_state
    first, second = (load_image_tower(str(tmp_path)) for _ in range(2))
    equal(first.features(stack(first, photo)), states[:, :1])
    assert first.facts() == second.facts()  # nothing drawn at random is in the hash
    assert not any("pooler" in name for name in first.state_dict())


def test_siglip2_reads_a_square_of_patches(tmp_path):
    config = transformers.Siglip2Config(
        text_config=TEXT, vision_config={**VISION, "patch_size": 8, "num_patches": 16}, projection_dim=16
    )
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    model = save(tmp_path, transformers.Siglip2Model(config), processor)
    square = Image.radial_gradient("L").convert("RGB")
    with torch.no_grad():
        inputs = processed(tmp_path, square)
        # by position: the mask's name depends on the release
        expected = model.vision_model(*(inputs[x] for x in ("pixel_values", "pixel_attention_mask", "spatial_shapes")))
    tower = load_image_tower(str(tmp_path))
    assert tower.preprocess(square).shape == (3, 32, 32)
    equal(tower.features(stack(tower, square)), expected.pooler_output[:, None])
    tower = load_image_tower(f"{tmp_path}#patches")
    equal(tower.features(stack(tower, square)), expected.last_hidden_state)


@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "test_vit.r160_in1k"])
def test_timm_with_a_file(tmp_path, photo, name):
    whole = timm.create_model(name).eval()
    for module in whole.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": whole.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    pixels = create_transform(**resolve_model_data_config(whole), is_training=False)(photo)[None]
    with torch.no_grad():
        states = whole.forward_features(pixels)
        pooled = whole.forward_head(states, pre_logits=True)
    conv = states.ndim == 4
    cells = states.flatten(2).transpose(1, 2) if conv else states[:, 1:]
    default = cells.mean(1, keepdim=True) if conv else states[:, :1]
    for reference, expected in {
        f"timm:{name}@{tmp_path}/w.safetensors": default,
        f"{name}@{tmp_path}/w.pth": default,
        f"timm:{name}@{tmp_path}/w.pth#patches": cells,
        f"timm:{name}@{tmp_path}/w.pth#pooled": pooled[:, None],
    }.items():
        tower = load_image_tower(reference)
        equal(tower.preprocess(photo)[None], pixels)
        equal(tower.features(pixels), expected)
        assert load_image_tower(tower.reference).facts() == tower.facts()
    if conv:
        with pytest.raises(UserError, match=r"no \[CLS\] token"):
            load_image_tower(f"timm:{name}@{tmp_path}/w.pth#cls+mean")


def test_a_folder_of_timm(tmp_path, photo):
    model = timm.create_model("test_vit", num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path / "tower")
    tower = load_image_tower(str(tmp_path / "tower"))
    assert tower.reference == f"timm:{tmp_path}/tower#cls"
    pixels = stack(tower, photo)
    with torch.no_grad():
        equal(tower.features(pixels), model.forward_features(pixels)[:, :1])


def test_open_clip(tmp_path, photo, capsys):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install -e '.[open_clip]'")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    model, _, transform = open_clip.create_model_and_transforms("tiny-clip")
    model.eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    pixels = transform(photo)[None]
    with torch.no_grad():
        expected = model.encode_image(pixels)[:, None]
        model.visual.output_tokens = True
        patches = model.visual(pixels)[1]
    for file in ("w.safetensors", "w.pth"):
        tower = load_image_tower(f"open_clip:tiny-clip@{tmp_path / file}")
        equal(tower.preprocess(photo)[None], pixels)
        equal(tower.features(pixels), expected)
    equal(load_image_tower(f"open_clip:tiny-clip@{tmp_path}/w.pth#patches").features(pixels), patches)
    assert load_image_tower(f"open_clip:tiny-clip@{tmp_path}/w.pth#cls+mean").width == 32

    torch.save({"state_dict": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth"):
        load_image_tower(f"open_clip:tiny-clip@{tmp_path}/bad.pth")
    assert "ran" not in capsys.readouterr().out

    folder = tmp_path / "folder"
    folder.mkdir()
    model_cfg = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(model_cfg))
    (tmp_path / "w.safetensors").rename(folder / "open_clip_model.safetensors")
    tower = load_image_tower(str(folder))
    assert tower.reference == f"open_clip:{folder}#pooled"
    equal(tower.features(pixels), expected)
    equal(tower.preprocess(Image.new("RGB", (40, 40))), -torch.ones(3, 32, 32))
    load_image_tower("open_clip:folder", trust_sources=False, folder=tmp_path)
    config["text_cfg"]["hf_model_name"] = "owner/name"
    (folder / "open_clip_config.json").write_text(json.dumps(model_cfg))
    with pytest.raises(UserError, match="built of owner/name"):
        load_image_tower("open_clip:folder", trust_sources=False, folder=tmp_path)
    with pytest.raises(UserError, match="would be random"):
        load_image_tower("open_clip:ViT-B-32")


def test_side_by_side(tmp_path, photo):
    dinov2(tmp_path / "a")
    clip(tmp_path / "b")
    both = load_image_tower(f"hf:{tmp_path}/a#cls+mean + hf:{tmp_path}/b")
    parts = [load_image_tower(reference) for reference in both.reference.split(" + ")]
    equal(
        both.features(stack(both, photo, photo)),
        torch.cat([part.features(stack(part, photo, photo)) for part in parts], -1),
    )
    assert both.width == 32 + 12 and both.tokens == 1
    alone = pickle.loads(pickle.dumps(both.transform))  # what a loader process is given
    equal(alone(photo), both.preprocess(photo))
    assert load_image_tower([f"{tmp_path}/a#cls+mean", f"{tmp_path}/b"]).facts() == both.facts()
    with pytest.raises(UserError, match=r"a#patches gives 16, .*b#pooled gives 1"):
        load_image_tower(f"{tmp_path}/a#patches + {tmp_path}/b")


def test_towers_stay_as_they_are(tmp_path, photo):
    dinov2(tmp_path)
    tower = load_image_tower(str(tmp_path))
    torch.nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    before = tower.facts()
    features = tower.features(stack(tower, photo))
    half = tower.to(torch.bfloat16).features(stack(tower, photo))
    assert half.dtype == torch.float32 and torch.allclose(half, features, atol=0.05)
    assert tower.facts() == before
    json.dumps(before)


def test_other_weights_have_another_hash(tmp_path):
    dinov2(tmp_path / "a")
    dinov2(tmp_path / "b")
    hashes = {load_image_tower(str(tmp_path / name)).facts()["weights"] for name in "ab"}
    assert len(hashes) == 2


def test_missing_preprocessing_is_said(tmp_path):
    dinov2(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="put the preprocessor_config.json of the model into the folder"):
        load_image_tower(str(tmp_path))


def test_preprocessing_of_no_fixed_size_is_refused(tmp_path):
    dinov2(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, "do_center_crop": False}))
    with pytest.raises(UserError, match="images of several sizes"):
        load_image_tower(str(tmp_path))


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file

    dinov2(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing .*layernorm.weight"):
        load_image_tower(str(tmp_path))


class Attack:
    def __reduce__(self):
        return print, ("ran",)


def test_a_file_runs_no_code(tmp_path, capsys):
    torch.save({"state_dict": Attack()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        load_image_tower(f"timm:test_vit@{tmp_path}/w.pth")
    assert "ran" not in capsys.readouterr().out


def test_code_beside_a_model_is_not_run(tmp_path, capsys):
    dinov2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("print('ran')\n")
    with pytest.raises(UserError, match="hf:"):
        load_image_tower(str(tmp_path))
    assert "ran" not in capsys.readouterr().out


def test_a_text_model_is_no_image_tower(bert_folder):
    with pytest.raises(UserError, match="takes no images"):
        load_image_tower(str(bert_folder))
