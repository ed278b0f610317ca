"""The dense model: the same towers as LexLIP's, but one vector of `embed_dim` numbers per image and caption.

It is what every sparse result is compared with: same towers, same data, same steps (CLIP, Radford et al., 2021).

B batch, L tokens, E embed_dim.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from lexlip.errors import ConfigError
from lexlip.models.two_tower import TwoTowers

START_SCALE = math.log(1 / 0.07)  # of the learned temperature, as in CLIP
MAX_SCALE = math.log(100)  # beyond it CLIP's training was unstable

MODEL_CARD = Path(__file__).with_name("card_dense.md").read_text(encoding="utf-8")


class DenseLIP(TwoTowers, model_card_template=MODEL_CARD):
    """Image tower, text tower, and linear projections of their [CLS] states; see `TwoTowers` for the arguments.

    An image tower without [CLS], such as a convolutional one, gives the mean of its tokens.

    Raises:
        ConfigError: no image projection, and an image tower that is not `embed_dim` wide.
    """

    head = "dense"

    def make_head(self) -> None:
        config = self.config
        text, image = self.text_encoder.width, self.image_encoder.width
        if config.embed_dim is None:
            raise ConfigError("embed_dim=None: the dense head needs the width of its vectors")
        if not config.image_projection and image != config.embed_dim:
            raise ConfigError(
                f"image_projection=False with embed_dim={config.embed_dim}, but the image tower is {image} wide; "
                f"set embed_dim={image} or image_projection=True"
            )
        self.text_pooler = nn.Linear(text, text) if config.text_pooler else None
        self.text_projection = nn.Linear(text, config.embed_dim, bias=False)
        self.image_projection = nn.Linear(image, config.embed_dim, bias=False) if config.image_projection else None
        for layer in (self.text_pooler, self.text_projection, self.image_projection):
            if layer is not None:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.logit_scale = nn.Parameter(torch.tensor(START_SCALE))  # logarithm of what multiplies cosines in the loss

    def vectors_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.project_text(self.text_encoder(input_ids, attention_mask)[:, 0])

    def vectors_long(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 1 + C, E): [CLS] and the corner tokens, each projected alike."""
        count = self.config.corner_tokens
        if not count:
            return self.vectors_text(input_ids, attention_mask)[:, None]
        return self.project_text(self.text_encoder.with_corners(input_ids, attention_mask)[:, : count + 1])

    def project_text(self, states: Tensor) -> Tensor:
        """(..., width) states of [CLS] to (..., E) float32."""
        if self.text_pooler is not None:
            states = torch.tanh(self.text_pooler(states))
        return self.text_projection(states).float()

    def vectors_image(self, pixel_values: Tensor) -> Tensor:
        states = self.image_encoder(pixel_values)
        has_cls = getattr(self.image_encoder.backbone, "cls_token", None) is not None
        states = states[:, 0] if has_cls else states.mean(1)
        return (states if self.image_projection is None else self.image_projection(states)).float()
