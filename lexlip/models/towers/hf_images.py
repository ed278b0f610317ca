"""Image towers of Hugging Face: the image side of CLIP and SigLIP, and image models such as DINOv2 and ViT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.towers.image import ImageBackbone, ImageOutputs
from lexlip.models.towers.packed import unpacked
from lexlip.models.towers.reference import Reference

EIGHT_BITS = "eight_bits.safetensors"  # in a folder that `embed_tower` wrote; a name that transformers does not read

# The image side alone of models with two sides, and where its vector in their common space is found.
IMAGE_SIDES = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "image_embeds"),
    "metaclip_2": ("MetaClip2VisionModelWithProjection", "image_embeds"),
    "siglip": ("SiglipVisionModel", "pooler_output"),
    "siglip_vision_model": ("SiglipVisionModel", "pooler_output"),
    "siglip2": ("Siglip2VisionModel", "pooler_output"),
    "siglip2_vision_model": ("Siglip2VisionModel", "pooler_output"),
}


def load_hf(reference: Reference) -> HFImages:
    """An image model of a folder or a name on the hub.

    Raises:
        ConfigError: it cannot be found, is no image model, or lacks its preprocessing.
        CheckpointError: its weights are not all there.
    """
    model, side = load_side(reference, IMAGE_SIDES, "text_config", "pixel_values")
    try:
        processor = AutoImageProcessor.from_pretrained(**source_of(reference), backend="pil")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tower {reference}: its preprocessing cannot be read ({first_line(error)}); put the "
            "preprocessor_config.json of the model into the folder"
        ) from error
    return HFImages(model, processor, side[1] if side else None)


def load_side(reference: Reference, sides: Mapping[str, Any], other: str, takes: str) -> tuple[Any, Any]:
    """A model, or the side of one that takes pixels or ids, and its entry of `sides`, if there is one.

    Args:
        sides: of each type of model, the class of this side first.
        other: what configs of models with two sides have besides.
        takes: the name of the model's input.

    Raises:
        ConfigError: it cannot be found, has two sides of another kind, or takes something else.
        CheckpointError: its weights are not all there.
    """
    try:
        config = AutoConfig.from_pretrained(**source_of(reference))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"tower {reference} is neither a folder with a config.json nor could it be fetched: {first_line(error)}"
        ) from error
    side = sides.get(config.model_type)
    if side is None and hasattr(config, other):
        known = ", ".join(sorted(name for name in sides if "_model" not in name))
        raise ConfigError(f"tower {reference}: of models with two sides, {known} are known, not {config.model_type}")
    model = load_weights(reference, getattr(transformers, side[0] if side else "AutoModel"))
    if takes == "input_ids" and getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if getattr(model, "main_input_name", None) != takes:
        what = "texts" if takes == "input_ids" else "images"
        raise ConfigError(f"tower {reference} is a {type(model).__name__}, which takes no {what}")
    return model, side


def source_of(reference: Reference) -> dict:
    """Arguments of `from_pretrained`: no code from files, and no network for a folder."""
    folder = reference.folder
    name = str(folder) if folder else reference.name
    return {"pretrained_model_name_or_path": name, "local_files_only": bool(folder), "trust_remote_code": False}


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_weights(reference: Reference, model_class: Any, **options) -> Any:
    """A model with all its weights, in float32, from safetensors or a pickle of tensors alone.

    A pooler that the files do not hold is taken out, because its numbers would be drawn at random.

    Raises:
        CheckpointError: weights are missing, of other shapes, or cannot be read.
    """
    source, file = source_of(reference), reference.folder / EIGHT_BITS if reference.folder else None
    try:
        if file is not None and file.is_file():
            model_class, source = _unpacked_source(model_class, source, file)
        model, info = model_class.from_pretrained(**source, dtype=torch.float32, output_loading_info=True, **options)
    except Exception as error:  # transformers, the hub, safetensors and torch each raise their own kinds
        raise CheckpointError(f"tower {reference}: its weights cannot be loaded: {first_line(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise CheckpointError(
            f"tower {reference}: weights are missing or of other shapes, first at "
            f"{(missing + sorted(map(str, info['mismatched_keys'])))[:3]}"
        )
    if len(info["missing_keys"]) > len(missing):
        model.pooler = None
    return model


def _unpacked_source(model_class: Any, source: dict, file: Path) -> tuple[Any, dict]:
    """The class and the arguments of `from_pretrained` for weights that are not in a file of transformers' own."""
    config = getattr(model_class, "config_class", AutoConfig).from_pretrained(**source)
    if model_class is AutoModel:  # which takes no weights without a name
        with torch.device("meta"):
            model_class = type(AutoModel.from_config(config))
    return model_class, {
        "pretrained_model_name_or_path": None, "config": config, "state_dict": unpacked(load_file(file))
    }  # fmt: skip


class HFImages(ImageBackbone):
    """A Hugging Face image model; states are its `last_hidden_state`."""

    def __init__(self, model: Any, processor: Any, pooled: str | None):
        super().__init__()
        self.model, self.pooled = model, pooled
        config = model.config
        self.patchify = config.patch_size if "siglip2" in config.model_type else None
        self.transform = SquareOfPatches(processor) if self.patchify else partial(_processed, processor)
        keys = json.loads(processor.to_json_string())
        self.preprocessing = dict(sorted(keys.items()))
        inner = getattr(model, "vision_model", model)
        embeddings = getattr(inner, "embeddings", None)
        names = ("cls_token", "class_embedding")
        self.has_cls = any(getattr(embeddings, name, None) is not None for name in names)
        more = (getattr(config, "num_register_tokens", 0) or 0) + hasattr(embeddings, "distillation_token")
        self.prefix = int(self.has_cls) + more
        self.default = "pooled" if pooled else "cls" if self.has_cls else "mean"

    def forward(self, pixels: Tensor, pooled: bool) -> ImageOutputs:
        output = self.model(**(_as_patches(pixels, self.patchify) if self.patchify else {"pixel_values": pixels}))
        states = output.last_hidden_state
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        return ImageOutputs(states, self.prefix, getattr(output, self.pooled) if self.pooled else None)


def _processed(processor: Any, image: Image.Image) -> Tensor:
    """One image by a Hugging Face processor with its Pillow backend, which filters as most models' training did."""
    return processor(image, return_tensors="pt")["pixel_values"][0].float()


class SquareOfPatches:
    """SigLIP 2's preprocessing for any shape, held to a square: of as many patches as the processor allows."""

    def __init__(self, processor: Any):
        self.side = int(processor.max_num_patches**0.5) * processor.patch_size
        self.resample = Image.Resampling(processor.resample)
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]
        self.factor = processor.rescale_factor

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image.resize((self.side, self.side), self.resample))
        return (torch.from_numpy(pixels).permute(2, 0, 1).float() * self.factor - self.mean) / self.std


def _as_patches(pixels: Tensor, patch: int) -> dict:
    """(B, 3, H, W) pixels as SigLIP 2 takes them: (B, L, patch * patch * 3), a mask and the grid's shape."""
    count, _, height, width = pixels.shape
    grid = (height // patch, width // patch)
    patches = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch)).permute(0, 2, 4, 3, 5, 1)
    values = patches.reshape(count, grid[0] * grid[1], -1)
    return {
        "pixel_values": values,
        "pixel_attention_mask": torch.ones(values.shape[:2], dtype=torch.int32, device=values.device),
        "spatial_shapes": torch.tensor([grid] * count, device=values.device),
    }
