"""ONNX files against the model that they were made from."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.convert import onnx
from lexlip.train.build import build_model


@pytest.mark.parametrize("activation", ["log1p", "log1p_twice"])
def test_onnx_files_give_the_model_s_vectors(make_config, livelier, tmp_path, activation):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

    def run(file, **inputs):
        session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / file), providers=["CPUExecutionProvider"])
        (result,) = session.run(["weights"], {name: value.numpy() for name, value in inputs.items()})
        return result

    model = livelier(build_model(LexLIP, make_config(activation=activation))).eval()
    model.save_pretrained(tmp_path / "model")
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "onnx")]) == 0
    ids, mask = torch.randint(5, 40, (5, 6)), torch.ones(5, 6, dtype=torch.int64)
    mask[0, 3:] = 0
    wanted = model.lexicon_text(ids, mask).detach().numpy()
    np.testing.assert_allclose(run("text.onnx", input_ids=ids, attention_mask=mask), wanted, atol=1e-4)
    pixels = torch.randn(4, 3, 32, 32)
    wanted = model.lexicon_image(pixels).detach().numpy()
    np.testing.assert_allclose(run("image.onnx", pixel_values=pixels), wanted, atol=1e-4)


def test_a_missing_package_is_named(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)  # an import of it fails
    assert main(["export-onnx", str(tmp_path), str(tmp_path / "onnx")]) == 2
    assert "onnx is needed to export to ONNX: pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["contextual", "lookup"])
def test_heads_on_frozen_towers_with_their_towers(frozen, head, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder, sides = frozen.folder(head), onnx._of_frozen
    if head == "lookup":  # whose image side is the same
        monkeypatch.setattr(onnx, "_of_frozen", lambda model: {"text.onnx": sides(model)["text.onnx"]})
    assert main(["export-onnx", str(folder), str(tmp_path / "onnx")]) == 0
    model, texts = LexLIP.from_pretrained(folder), ["a red box left", "the small boxs on a large photo", "the"]
    tokens = model.tokenizer(texts, padding=True, add_special_tokens=head == "contextual", return_tensors="pt")
    pixels = torch.stack([model.image_transform()(Image.new("RGB", (40, 30), colour)) for colour in ("red", "green")])
    inputs = {
        "text.onnx": {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]},
        "image.onnx": {"pixel_values": pixels},
    }
    wanted = {"text.onnx": model.encode_text(texts), "image.onnx": model.encode_image(pixels)}
    assert {path.name for path in (tmp_path / "onnx").glob("*.onnx")} == set(list(inputs)[: 1 + (head != "lookup")])
    for file, values in inputs.items():
        if not (tmp_path / "onnx" / file).exists():
            continue
        session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / file), providers=["CPUExecutionProvider"])
        (found,) = session.run(["weights"], {name: value.numpy() for name, value in values.items()})
        found = torch.nn.functional.normalize(torch.from_numpy(found), dim=-1)
        torch.testing.assert_close(found, wanted[file], atol=1e-4, rtol=1e-3)
