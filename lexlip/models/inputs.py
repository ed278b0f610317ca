"""What may be given to `encode_text`, `encode_image` and `lexicon`; everything else is named in one line.

B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from types import UnionType

import torch
from torch import Tensor

from lexlip.errors import EncodingError

MOST = 10.0  # of a normalised pixel: those of this project lie in [-1, 1], of other means and deviations below 3


def check_pixels(pixels: Tensor, patch: int | None) -> None:
    """Refuse what is not (B, 3, H, W) normalised pixels.

    Raises:
        EncodingError: saying what was given and what is wanted.
    """
    wanted = "wanted are normalised pixels (B, 3, H, W), in [-1, 1] for this model: (x / 255 - 0.5) / 0.5"
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        hint = "; one image is pixels[None]" if pixels.ndim == 3 and pixels.shape[0] == 3 else ""
        raise EncodingError(f"a tensor of shape {tuple(pixels.shape)} is no batch of images: {wanted}{hint}")
    if not pixels.is_floating_point():
        raise EncodingError(f"a tensor of {pixels.dtype} holds no normalised pixels: {wanted}")
    if 0 in pixels.shape[1:] or (patch and (pixels.shape[2] % patch or pixels.shape[3] % patch)):
        raise EncodingError(
            f"images of {pixels.shape[2]} x {pixels.shape[3]} pixels: sides must be multiples of {patch or 1}"
        )
    if not pixels.numel():
        return
    low, high = (float(value) for value in torch.aminmax(pixels.detach()))
    if not (-MOST <= low and high <= MOST):  # NaN is neither
        raise EncodingError(f"a tensor with pixels from {low:g} to {high:g}: {wanted}")


def check_ids(ids: Tensor, mask: Tensor | None, words: int, positions: int) -> Tensor:
    """Refuse what is not (B, L) token ids of a vocabulary, with a mask of the same shape; gives the mask.

    Args:
        words: ids are smaller.
        positions: L is not larger.

    Raises:
        EncodingError: saying what was given and what is wanted.
    """
    if mask is None:
        raise EncodingError("token ids need their attention_mask")
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 2 or not whole:
        raise EncodingError(
            f"a tensor of {ids.dtype} and shape {tuple(ids.shape)}: wanted are (B, L) token ids, integers"
        )
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise EncodingError(f"attention_mask is {given}, but the token ids are {tuple(ids.shape)}")
    if len(ids) and not 0 < ids.shape[1] <= positions:
        raise EncodingError(f"texts of {ids.shape[1]} tokens: this model reads 1 to {positions}")
    if ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < words):
        raise EncodingError(f"token ids from {int(ids.min())} to {int(ids.max())}: this model has 0 to {words - 1}")
    return mask


def check_vectors(vectors: Tensor, words: int, top_k: int) -> Tensor:
    """(B, V) vectors as they are, or of a sparse tensor.

    Raises:
        EncodingError: something else, another V, or no positive `top_k`.
    """
    if not isinstance(vectors, Tensor):
        raise EncodingError(
            f"lexicon takes (B, {words}) vectors as encode_text gives them, not {type(vectors).__name__}"
        )
    if vectors.ndim != 2 or vectors.shape[1] != words or not vectors.is_floating_point():
        hint = "; one vector is vectors[None]" if vectors.shape == (words,) else ""
        raise EncodingError(
            f"vectors of {vectors.dtype} and shape {tuple(vectors.shape)}: wanted are floats (B, {words}){hint}"
        )
    if type(top_k) is not int or top_k < 1:
        raise EncodingError(f"top_k={top_k!r}: a whole number from 1 on")
    return vectors if vectors.layout == torch.strided else vectors.to_dense()


def listed(values: object, kind: type | UnionType, name: str) -> list:
    """One value or an ordered collection of them as a list.

    Raises:
        TypeError: something else, or something else in it.
    """
    if isinstance(values, kind):
        return [values]
    # The order of a set is nobody's, and the values of a mapping would be left out.
    if not isinstance(values, Iterable) or isinstance(values, (Mapping, Set, str, bytes, bytearray)):
        raise TypeError(f"a {type(values).__name__} is neither {name} nor a list of such")
    items = list(values)
    for number, value in enumerate(items):
        if not isinstance(value, kind):
            raise TypeError(f"item {number} is of type {type(value).__name__}, not {name}")
    return items


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts with half a character.

    Raises:
        EncodingError: naming the text and the place in it.
    """
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EncodingError(
                f"text {number} holds half a character (a lone surrogate, {text[error.start]!a}) at place "
                f"{error.start}; "
                'text.encode("utf-8", "replace").decode() replaces it'
            ) from None
