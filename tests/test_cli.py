"""The `lexlip` command: official checkpoints, exports and ONNX files, by their numbers and their refusals."""

import os

import numpy as np
import pytest
import torch

from lexlip import LexLIP, ModelConfig
from lexlip.cli import main
from lexlip.convert.official import _resample
from lexlip.train.build import build_model
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {1: Phase1Module, 2: Phase2Module}


@pytest.fixture(params=[1, 2], ids=["phase1", "phase2"])
def official(request, shared, tmp_path):
    """A golden checkpoint imported through the command line, with its inputs and outputs."""
    checkpoint, outputs = (shared("golden", f"Phase{request.param}_tiny_11.{end}") for end in ("ckpt", "npz"))
    out = tmp_path / "imported"
    assert main(["import-official", str(checkpoint), str(out), "--text-heads", "4"]) == 0
    with np.load(outputs) as arrays:
        values = {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fi"}
    return request.param, out, values


def test_an_imported_folder_gives_the_official_vectors(official, capsys):
    _, out, values = official
    model = LexLIP.from_pretrained(out)
    text = model.lexicon_text(values["ids"], values["mask"])
    torch.testing.assert_close(text, values["text_lex"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.lexicon_image(values["img"]), values["image_lex"], rtol=0, atol=1e-4)


def test_an_imported_folder_gives_the_official_losses(official):
    phase, out, values = official
    module = PHASES[phase].from_model(out)
    batch = {
        "image": values["img"], "text_ids": values["ids"], "text_mask": values["mask"], "encoder_ids": values["e_ids"],
        "encoder_labels": values["e_lab"], "decoder_ids": values["d_ids"], "decoder_labels": values["d_lab"],
        "image_id": torch.arange(6),
    }  # fmt: skip
    losses = {name: float(value.detach()) for name, value in module.compute_losses(batch).items()}
    losses["contrastive_loss"] += losses.pop("flops_loss")
    wanted = {name: float(value) for name, value in values.items() if name.endswith("_loss")}
    assert losses == pytest.approx(wanted, abs=1e-4)
    if phase == 2:
        module.after_step(*module.prepare(batch))
        torch.testing.assert_close(module.text_ring.keys[18:], values["text_keys"], rtol=0, atol=1e-5)
        torch.testing.assert_close(module.image_ring.keys[18:], values["image_keys"], rtol=0, atol=1e-5)
        assert int(module.text_ring.position) == int(values["ptr"][0])


def test_every_official_parameter_is_used_or_named(official, shared, tmp_path, capsys):
    phase, _, _ = official
    path = shared("golden", f"Phase{phase}_tiny_11.ckpt")
    content = torch.load(path, weights_only=True)
    capsys.readouterr()
    main(["import-official", str(path), str(tmp_path / "again"), "--text-heads", "4"])
    named = {line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert named <= set(content["state_dict"])
    assert not any(name.startswith("image_transformer") and name.endswith("weight") for name in named)
    content["state_dict"]["text_transformer.extra.weight"] = torch.zeros(2)
    torch.save(content, tmp_path / "more.ckpt")
    assert main(["import-official", str(tmp_path / "more.ckpt"), str(tmp_path / "no"), "--text-heads", "4"]) == 2
    assert "text_transformer.extra.weight" in capsys.readouterr().err
    del content["state_dict"]["text_transformer.extra.weight"]
    del content["state_dict"]["text_transformer.bert.embeddings.LayerNorm.weight"]
    torch.save(content, tmp_path / "less.ckpt")
    assert main(["import-official", str(tmp_path / "less.ckpt"), str(tmp_path / "no"), "--text-heads", "4"]) == 2
    assert "embeddings.LayerNorm.weight" in capsys.readouterr().err


@pytest.mark.parametrize("heads", ["3", "0"])
def test_text_heads_must_divide_the_width(shared, tmp_path, capsys, heads):
    path = shared("golden", "Phase1_tiny_11.ckpt")
    assert main(["import-official", str(path), str(tmp_path / "no"), "--text-heads", heads]) == 2
    assert f"--text-heads {heads}" in capsys.readouterr().err


def test_the_official_resampling_is_one_line_over_the_flattened_table():
    table = torch.arange(12.0)[:, None].repeat(1, 2)  # a grid of 2: 9 offsets and three rows of CLS
    fitted = _resample(table, 2, 4, "official")
    rows = 7 * 7 + 3
    assert fitted.shape == (rows, 2)
    scale = (rows + 0.1) / 12
    # Place of each new row in the old table, half-pixel centres.
    place = np.clip((np.arange(rows) + 0.5) / scale - 0.5, 0, 11)
    np.testing.assert_allclose(fitted[:, 0].numpy(), place, atol=1e-4)
    assert torch.equal(_resample(table, 2, 2, "2d"), table)


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("command", ["import-official", "export"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys, command):
    trace = tmp_path / "ran"
    torch.save({"state_dict": {"text_transformer.x": Malicious(str(trace))}}, tmp_path / "bad.ckpt")
    assert main([command, str(tmp_path / "bad.ckpt"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "bad.ckpt" in error and "run code" in error
    assert not trace.exists() and not (tmp_path / "out").exists()


def test_onnx_files_give_the_model_s_vectors(make_config, livelier, tmp_path, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model = livelier(build_model(LexLIP, make_config())).eval()
    model.save_pretrained(tmp_path / "model")
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "onnx")]) == 0
    ids, mask = torch.randint(5, 40, (5, 6)), torch.ones(5, 6, dtype=torch.int64)
    mask[0, 3:] = 0
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "text.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    np.testing.assert_allclose(found, model.lexicon_text(ids, mask).detach().numpy(), atol=1e-4)
    pixels = torch.randn(4, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "image.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixel_values": pixels.numpy()})[0]
    np.testing.assert_allclose(found, model.lexicon_image(pixels).detach().numpy(), atol=1e-4)


def test_saving_over_another_model_leaves_nothing_of_it(make_config, tmp_path):
    model = build_model(LexLIP, make_config())
    model.save_pretrained(tmp_path)
    for stale in ("phase2.safetensors", "tokenizer.json", "vocab.txt"):
        (tmp_path / stale).write_text("old")
    model.save_pretrained(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert LexLIP.from_pretrained(tmp_path).config == ModelConfig(**vars(model.config))
    with pytest.raises(TypeError, match="imagesize"):
        LexLIP.from_pretrained(tmp_path, imagesize=3)
