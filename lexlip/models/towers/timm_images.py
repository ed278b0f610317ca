"""Image towers of timm, with timm's own preprocessing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.towers.image import ImageBackbone, ImageOutputs
from lexlip.models.towers.packed import unpacked
from lexlip.models.towers.reference import LOCAL, Reference


def load_timm(reference: Reference) -> TimmImages:
    """A timm model without its classifier.

    Raises:
        ConfigError: timm knows no such model, or cannot fetch or load its weights.
        CheckpointError: the file of weights does not fit.
    """
    name = f"{LOCAL}{reference.folder}" if reference.folder else reference.name
    try:
        model = timm.create_model(name, pretrained=reference.file is None, num_classes=0)
    except Exception as error:  # timm, the hub, safetensors and torch each raise their own kinds
        raise ConfigError(
            f"timm cannot build or load {reference}: {error}; without network name a file: timm:NAME@FILE"
        ) from error
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise ConfigError(f"tower {reference}: this timm model gives no features")
    if reference.weights:
        load_file(model, reference.weights)
    return TimmImages(model)


def load_file(model: Any, file: Path) -> None:
    """Load a timm weights file strictly, its classifier aside; timm resamples positions and renames old keys."""
    head = model.pretrained_cfg.get("classifier") or ()
    unused = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    try:
        state = unpacked(load_state_dict(str(file), weights_only=True))
        fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = fit(state, model) if fit else state
        result = model.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused or "\0")}, False)
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
        raise CheckpointError(f"{file} does not load into timm's {type(model).__name__}: {error}") from error
    if result.missing_keys or result.unexpected_keys:
        raise CheckpointError(
            f"{file} does not fit timm's {type(model).__name__}; not in the file: {result.missing_keys[:3]}, "
            f"not in the model: {result.unexpected_keys[:3]}"
        )


class TimmImages(ImageBackbone):
    """A timm model; `pooled` is timm's own embedding, that of `forward_head(pre_logits=True)`."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        config = resolve_model_data_config(model)
        self.preprocessing = {key: _plain(value) for key, value in sorted(config.items())}
        self.transform = create_transform(**config, is_training=False)
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.prefix = getattr(model, "num_prefix_tokens", int(self.has_cls))
        pool = getattr(model, "global_pool", None)
        is_map = not hasattr(model, "num_prefix_tokens") and not self.has_cls
        # A ViT that averages its patches normalises only after that, in its head.
        self.default = "mean" if is_map else "cls" if pool == "token" and self.has_cls else "pooled"

    def forward(self, pixels: Tensor, pooled: bool) -> ImageOutputs:
        states = self.model.forward_features(pixels)
        if pooled:
            return ImageOutputs(None, self.prefix, self.model.forward_head(states, pre_logits=True))
        if states.ndim == 4:
            width = self.model.num_features
            last = states.shape[-1] == width and states.shape[1] != width
            return ImageOutputs(states.flatten(1, 2) if last else states.flatten(2).transpose(1, 2), 0, None)
        return ImageOutputs(states, self.prefix, None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
