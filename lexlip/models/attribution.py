"""Where a term's weight comes from: which patches of an image, which word pieces of a text.

A lexicon head keeps each term's largest logit over the patches, so the patches' own logits are a heat map of the term
that explains its weight exactly, for one product more. A head on an average of patches has no such maximum, but its
logit is the mean of one share per patch: see `MEAN`. Both cost a forward pass of the image; after that N terms cost
N x P x D multiplications.

B batch, P = H x W patches, N terms that are asked for, V terms of the vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lexlip.errors import EncodingError
from lexlip.ops.max_logits import saturate

if TYPE_CHECKING:
    from lexlip.models.retrieval import LexiconModel

# How the patches' logits make the image's: their maximum ([CLS], where there is one, is part of it and has no place),
# or their mean. The mean is exact with the scale of the head's LayerNorm taken from the whole image: all before it is
# linear, its centring too. That the scale is not divided among the patches is a choice.
Pooling = Literal["max", "mean"]
MAX, MEAN = "max", "mean"
PROBE = 512  # pixels of the longer side of the image that shows what a transform cuts off


class Box(NamedTuple):
    """A part of an image, in fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


class TextAttribution(NamedTuple):
    """What each word piece of a text adds to some terms.

    Attributes:
        pieces: L of them; "[text]" stands for what the text as a whole adds.
        weights: (N, L) float32.
        pooling: "max" or "sum" of a row is the term's weight in `encode_text(text, normalize=False)`.
    """

    pieces: list[str]
    weights: Tensor
    pooling: Literal["max", "sum"]


def term_ids(model: LexiconModel, words: str | int | Sequence[str | int]) -> Tensor:
    """(N,) int64 ids of terms, by name or by number.

    Raises:
        EncodingError: none, no term of the vocabulary, or names without a tokenizer.
    """
    items = [words] if isinstance(words, (str, int)) else list(words)
    if not items:
        raise EncodingError("no words: name at least one term of the vocabulary")
    named = any(isinstance(item, str) for item in items)
    if named and model.tokenizer is None:
        raise EncodingError("this model has no tokenizer to look words up in; give the terms' numbers")
    known = model.tokenizer.get_vocab() if named else {}
    ids = []
    for item in items:
        id = known.get(item) if isinstance(item, str) else item
        if type(id) is not int or not 0 <= id < model.vocab_size:
            raise EncodingError(
                f"{item!r} is no term of this model's vocabulary of {model.vocab_size:,}: words are lower-case word "
                "pieces, as model.lexicon names them"
            )
        ids.append(id)
    return torch.tensor(ids, device=model.device)


def grid_of(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of so many patches of an image of such sides.

    Raises:
        EncodingError: they make no grid.
    """
    rows = max(1, round((patches * height / width) ** 0.5))
    if patches % rows:
        raise EncodingError(f"{patches} tokens of an image of {width} x {height} pixels make no grid of patches")
    return rows, patches // rows


def patch_weights(model: LexiconModel, states: Tensor, words: str | int | Sequence[str | int]) -> Tensor:
    """(H, W, D) of `model.patch_states` to (N, H, W) logits of some terms."""
    return model.term_logits(states, term_ids(model, words)).permute(2, 0, 1).float()


def saturated_weights(model: LexiconModel, logits: Tensor) -> Tensor:
    """Patches' logits to weights, as the model has them: `saturate`."""
    return saturate(logits, model.config.activation)


def seen(transform: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Box:
    """Which part of an image a model looks at: its transform is shown two ramps.

    Args:
        transform: an RGB image to (3, H, W), by resizing, cropping and a linear change of colours.
        size: width and height of the image.
    """
    scale = PROBE / max(size)
    width, height = (max(2, round(side * scale)) for side in size)
    ramp = Image.linear_gradient("L").resize((width, height))  # 0 at the top to 255 at the bottom
    across = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((width, height))
    black, white = (transform(Image.new("RGB", (width, height), colour))[0] for colour in ("black", "white"))
    shown = [(transform(Image.merge("RGB", [image] * 3))[0] - black) / (white - black) for image in (across, ramp)]
    (left, right), (top, bottom) = (_ends(values) for values in (shown[0].mean(0), shown[1].mean(1)))
    return Box(left, top, right, bottom)


def _ends(values: Tensor) -> tuple[float, float]:
    """Where a row of pixels of a ramp begins and ends on it, by the straight line through their middle half.

    Resampling bends the ramp's own ends. The ramp's steps go from 0 to 255, each 1/256 of its length.
    """
    count = len(values)
    places = np.arange(count // 4, max(count - count // 4, count // 4 + 2)) + 0.5
    slope, begin = np.polyfit(places, values.numpy()[places.astype(int)] * (255 / 256) + 0.5 / 256, 1)
    first, last = (min(1.0, max(0.0, float(edge))) for edge in (begin, begin + slope * count))
    return round(first, 3), round(last, 3)
