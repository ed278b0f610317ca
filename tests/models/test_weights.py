"""Weights from files: what loads, and that everything else is refused with the file's name."""

import logging
import os

import pytest
import torch

from lexlip.errors import CheckpointError
from lexlip.models.lexlip import LexLIP
from lexlip.models.positions import resample_relative_table, stretch_as_official
from lexlip.models.weights import load_model, model_weights, read
from lexlip.train.build import build_model


@pytest.fixture
def model(make_model):
    return make_model()


def save(model, path, by_a_phase=False, **others):
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": {**state, **others}, "epoch": 1, "global_step": 5}
    torch.save({**content, "hyper_parameters": {"config": {}, "model": {}}} if by_a_phase else content, path)
    return path


def test_a_checkpoint_comes_back_strictly(make_config, model, tmp_path):
    fresh = build_model(LexLIP, make_config())
    load_model(fresh, save(model, tmp_path / "a.ckpt"))
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_model_folder_loads_too(make_config, model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    fresh = build_model(LexLIP, make_config())
    load_model(fresh, tmp_path / "folder")
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_phases_own_parts_are_named_and_left_out(model, tmp_path, caplog):
    extra = {"decoder.layers.x": torch.zeros(1), "twin.module.y": torch.zeros(1), "text_ring.keys": torch.zeros(1)}
    with caplog.at_level(logging.INFO, logger="lexlip.models.weights"):
        weights = model_weights(save(model, tmp_path / "a.ckpt", by_a_phase=True, **extra))
    assert set(weights) == set(model.state_dict())
    for prefix in ("decoder.", "twin.", "text_ring."):
        assert any(f"1 entries of {prefix}" in line and "not loaded" in line for line in caplog.messages), prefix


@pytest.mark.parametrize("size", [16, 48])
def test_another_image_size_resamples_the_positions(make_config, model, tmp_path, caplog, size):
    other = build_model(LexLIP, make_config(image_size=size))
    with caplog.at_level(logging.INFO, logger="lexlip.models.weights"):
        load_model(other, save(model, tmp_path / "a.ckpt"))
    assert any(f"2 position tables resampled to {size} px" in line for line in caplog.messages)
    name, grid = "image_encoder.backbone.blocks.1.attn.relative_position_bias_table", (size // 8, size // 8)
    wanted = resample_relative_table(model.state_dict()[name], (4, 4), grid)
    torch.testing.assert_close(other.state_dict()[name], wanted)
    # What the old model gives for images of the new size is what the new one gives.
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, 48])
def test_positions_are_resampled_as_the_official_code_does_where_asked_for(make_config, model, tmp_path, size):
    """A smaller grid is cut out of the larger one's bias there, which no table can say."""
    other = build_model(LexLIP, make_config(image_size=size, rel_pos="official"))
    load_model(other, save(model, tmp_path / "a.ckpt"))
    name, grid = "image_encoder.backbone.blocks.1.attn.relative_position_bias_table", (size // 8, size // 8)
    old = model.state_dict()[name]
    wanted = stretch_as_official(old, grid) if size > 32 else resample_relative_table(old, (4, 4), grid)
    torch.testing.assert_close(other.state_dict()[name], wanted)


def test_another_image_size_of_a_vit(make_config, livelier, tmp_path):
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = make_config(vit="vit_tiny_patch16_224", vit_kwargs=kwargs)
    model, other = livelier(build_model(LexLIP, config)), build_model(LexLIP, config.changed(image_size=48))
    load_model(other, save(model, tmp_path / "a.ckpt"))
    old, new = (m.image_encoder.backbone.pos_embed for m in (model, other))
    assert new.shape == (1, 37, 16)
    assert torch.equal(old[:, 0], new[:, 0])  # CLS
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-5)


def refused(action, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*arguments)
    return str(caught.value)


def test_an_absent_file(tmp_path):
    assert "gone.ckpt: no such" in refused(read, tmp_path / "gone.ckpt")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short(model, tmp_path, fraction):
    data = save(model, tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: int(len(data) * fraction)])
    message = refused(load_model, model, tmp_path / "cut.ckpt")
    assert "cut.ckpt" in message and "cut short" in message


def test_a_text_file(model, tmp_path):
    (tmp_path / "notes.ckpt").write_text("these are notes")
    assert "notes.ckpt" in refused(load_model, model, tmp_path / "notes.ckpt")


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_does_not(model, tmp_path, legacy):
    trace = tmp_path / "ran"
    content = {"state_dict": {"model.x": Malicious(str(trace))}}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=not legacy)
    message = refused(load_model, model, tmp_path / "bad.ckpt")
    assert "bad.ckpt" in message and "run code" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        {},
        {"state_dict": {}},
        {"state_dict": [torch.zeros(2)]},
        {0: torch.zeros(2)},
        {"state_dict": {0: torch.zeros(2)}},
        {"model": {"blocks.0.weight": torch.zeros(2)}, "epoch": 3},
        {"state_dict": {"module.visual.weight": torch.zeros(2)}},
        {"state_dict": {"model.text_head.dense.bias": 3}},
        {"state_dict": {"model.text_head.dense.bias": torch.zeros(16)}},
    ],
    ids=range(11),
)
def test_a_foreign_file(model, tmp_path, content):
    torch.save(content, tmp_path / "foreign.ckpt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "foreign.ckpt" in refused(load_model, model, tmp_path / "foreign.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_names_that_no_phase_writes(model, tmp_path):
    message = refused(load_model, model, save(model, tmp_path / "a.ckpt", **{"optimizer.x": torch.zeros(1)}))
    assert "a.ckpt" in message and "optimizer.x" in message


def test_missing_and_superfluous_names_are_listed(model, tmp_path):
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state["model.third_head.weight"] = state.pop("model.text_head.dense.bias")
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    message = refused(load_model, model, tmp_path / "a.ckpt")
    for part in ("a.ckpt", "text_head.dense.bias: not in the file", "third_head.weight: not in the model"):
        assert part in message


def test_another_vocabulary_is_told(make_config, model, tmp_path):
    other = build_model(LexLIP, make_config(vocab_size=44))
    message = refused(load_model, other, save(model, tmp_path / "a.ckpt"))
    for part in ("a.ckpt", "(40, 16) in the file, (44, 16) in the model", "vocab_size"):
        assert part in message


def test_other_depth_or_width_is_told(make_config, model, tmp_path):
    path = save(model, tmp_path / "a.ckpt")
    assert "not in the file" in refused(load_model, build_model(LexLIP, make_config(text_layers=3)), path)
    kwargs = {**make_config().vit_kwargs, "embed_dim": 24}
    config = make_config(input_image_embed_size=24, vit_kwargs=kwargs)
    assert "in the model" in refused(load_model, build_model(LexLIP, config), path)


def test_a_checkpoint_of_the_official_code_names_the_importer(model, tmp_path):
    torch.save({"state_dict": {"text_transformer.bert.x": torch.zeros(1)}}, tmp_path / "old.ckpt")
    message = refused(load_model, model, tmp_path / "old.ckpt")
    assert "old.ckpt" in message and "import-official" in message


def test_a_folder_without_a_model(model, tmp_path):
    assert str(tmp_path) in refused(load_model, model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00")
    assert str(tmp_path) in refused(load_model, model, tmp_path)
