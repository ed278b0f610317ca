"""Image towers of open_clip (an optional package), with open_clip's own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.towers.image import ImageBackbone, ImageOutputs
from lexlip.models.towers.reference import HUB, LOCAL, Reference


def load_open_clip(reference: Reference) -> OpenClipImages:
    """The image side of an open_clip model.

    Raises:
        ConfigError: open_clip is not installed, knows no such model or weights, or cannot load them.
    """
    open_clip = _library(reference)
    name, tag = _architecture(reference)
    known = open_clip.get_pretrained_cfg(name, tag) if tag and not reference.file else None
    try:
        model = open_clip.create_model(
            name, pretrained=str(reference.weights) if reference.weights else tag, weights_only=True,
            force_quick_gelu=bool((known or {}).get("quick_gelu")), require_pretrained=True,
        )  # fmt: skip
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
        raise ConfigError(f"open_clip cannot load {reference}: {error}") from error
    return OpenClipImages(open_clip, model.visual)


def _library(reference: Reference) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"tower {reference} needs open_clip: pip install -e '.[open_clip]'") from error
    return open_clip


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _architecture(reference: Reference) -> tuple[str, str | None]:
    """open_clip's name of the architecture and of the weights."""
    if reference.folder:
        return f"{LOCAL}{reference.folder}", None
    if reference.name.startswith(HUB):
        return reference.name, None
    model, _, tag = (reference.name, "", "") if reference.file else reference.name.rpartition("/")
    if not (model and tag) and not reference.file:
        raise ConfigError(
            f"tower {reference} without weights would be random; give open_clip:MODEL/WEIGHTS, such as "
            "open_clip:ViT-B-32/openai, or open_clip:MODEL@FILE"
        )
    return model.replace("/", "-"), tag or None


def check_architecture(reference: Reference) -> None:
    """Refuse an architecture that is itself a name on the hub, which open_clip would fetch.

    Raises:
        ConfigError: naming it.
    """
    if reference.folder:
        config = _read_json(reference.folder / "open_clip_config.json").get("model_cfg") or {}
    else:
        config = _library(reference).get_model_config(_architecture(reference)[0]) or {}
    parts = [(config.get("text_cfg") or {}).get(key) for key in ("hf_model_name", "hf_tokenizer_name")]
    timm_name = (config.get("vision_cfg") or {}).get("timm_model_name") or ""
    leads = next((part for part in (*parts, timm_name if ":" in timm_name else None) if part), None)
    if leads:
        raise ConfigError(
            f"tower {reference} is built of {leads}, which would be fetched by its name; pass trust_sources=True if "
            "you trust who wrote the name"
        )


class OpenClipImages(ImageBackbone):
    """The image side of an open_clip model.

    Pooled is open_clip's `encode_image`. States are those of the last block, normalised by the tower's own last norm
    and not projected.
    """

    def __init__(self, open_clip: Any, visual: Any):
        super().__init__()
        self.visual = visual
        config = open_clip.transform.PreprocessCfg(**visual.preprocess_cfg)
        self.transform = open_clip.transform.image_transform_v2(config, is_train=False)
        self.preprocessing = json.loads(json.dumps(visual.preprocess_cfg))
        inner = getattr(visual, "trunk", visual)
        self.has_cls = any(getattr(inner, key, None) is not None for key in ("class_embedding", "cls_token"))
        self.default = "pooled"

    def forward(self, pixels: Tensor, pooled: bool) -> ImageOutputs:
        if pooled:
            vectors = self.visual(pixels)
            return ImageOutputs(None, 0, vectors[0] if isinstance(vectors, tuple) else vectors)
        if hasattr(self.visual, "trunk"):
            states = self.visual.trunk.forward_features(pixels)
            if states.ndim == 4:
                return ImageOutputs(states.flatten(2).transpose(1, 2), 0, None)
            return ImageOutputs(states, getattr(self.visual.trunk, "num_prefix_tokens", int(self.has_cls)), None)
        if not hasattr(self.visual, "forward_intermediates"):
            return ImageOutputs(None, 0, None)
        found = self.visual.forward_intermediates(
            pixels, indices=1, output_extra_tokens=True, intermediates_only=True,
            normalize_intermediates=getattr(self.visual, "attn_pool", None) is None,  # else its norm comes after that
        )  # fmt: skip
        cells = found["image_intermediates"][-1].flatten(2).transpose(1, 2)
        prefix = found.get("image_intermediates_prefix")
        if prefix is None:
            return ImageOutputs(cells, 0, None)
        return ImageOutputs(torch.cat([prefix[-1], cells], 1), prefix[-1].shape[1], None)
