"""One short name for a model's weights and vocabulary, to tell whether two models give the same vectors."""

from __future__ import annotations

import hashlib
import json

import torch

from lexlip.models.config import unseen
from lexlip.models.retrieval import RetrievalModel


def fingerprint(model: RetrievalModel) -> str:
    """32 hexadecimal digits; others for other weights or another vocabulary. Reads all weights: a second per gigabyte.

    Of the config only `unseen` is taken: a later version may add to it, and what changes the shape of weights is seen
    in them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if model.tokenizer is not None:
        digest.update(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(unseen(vars(model.config)))
    return digest.hexdigest()
