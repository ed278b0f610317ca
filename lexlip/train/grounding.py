"""Words that mean something: captions that may weigh their own terms alone, images that are pushed towards them.

An expansion that is free from the start finds images just as well with terms that mean nothing, a code that both towers
agree on. So a caption's own terms must learn to find the image before others may help (Nguyen et al., ECIR 2024).

B rows, L tokens, V terms.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.train.config import Config
from lexlip_data.loading.batch import Batch
from lexlip_data.loading.rng import row_seeds, uniforms

STREAM = 11  # of a sample's random numbers


def expansion_share(config: Config, step: int, steps: int) -> float:
    """The probability that a caption, or one of its foreign terms, may be active at a step; it grows linearly."""
    begin, end = config.expansion_start, config.expansion_end
    return begin + (end - begin) * min(1.0, step / max(1, steps))


def drawn_expansion(config: Config, batch: Batch, step: int, steps: int, terms: int = 1) -> Tensor:
    """(B, terms) float, 1 where an expansion is allowed in this step: one column for captions, V for single terms.

    A function of (seed, step, sample), so it is the same however a batch is spread over processes and micro-batches.
    """
    ids = batch["image_id"].cpu().numpy()
    numbers = batch["caption_number"].cpu().numpy() if "caption_number" in batch else np.zeros_like(ids)
    drawn = uniforms(row_seeds(config.seed, step, ids, numbers), STREAM, terms)
    allowed = torch.from_numpy((drawn < expansion_share(config, step, steps)).astype(np.float32))
    return allowed.to(batch["image_id"].device)


def controlled(weights: Tensor, own: Tensor, expanded: Tensor) -> Tensor:
    """(B, V) term weights without those that are neither the caption's own nor allowed, see `drawn_expansion`."""
    return weights * torch.maximum(own, expanded)


def push(logits: Tensor, weights: Tensor, own: Tensor, floor: float = 0.0) -> Tensor:
    """Caption-gated push (after V-SPLADE): an image's logits of the terms that its caption has, too, are to be large.

    Args:
        logits: (B, V) largest logits of the images.
        weights: (B, V) term weights that they become.
        own: (B, V) the caption's own terms with their weights.
        floor: added to the images' weights in the target. With 0 a term that an image has lost is left lost; above, it
            comes back.

    Returns:
        (B,) sums over terms of target x -log sigmoid(logit). Targets are image weight x caption weight, without
        gradient, scaled to sum to 1; 0 where image and caption share no term.
    """
    targets = ((weights + floor) * own).detach()
    targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-6)
    return (targets * F.softplus(-logits)).sum(1)
