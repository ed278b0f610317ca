"""Image towers of open_clip (an optional package), with open_clip's own preprocessing."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from lexlip.models.towers.image import ImageBackbone, ImageOutputs
from lexlip.models.towers.open_clip_side import create
from lexlip.models.towers.reference import Reference


def load_open_clip(reference: Reference) -> OpenClipImages:
    """The image side of an open_clip model.

    Raises:
        ConfigError: open_clip is not installed, knows no such model or weights, or cannot load them.
        CheckpointError: the file of one side is damaged, or of another model.
    """
    open_clip, model = create(reference, "image")
    return OpenClipImages(open_clip, model.visual)


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
