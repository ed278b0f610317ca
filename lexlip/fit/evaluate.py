"""Recall and grounding of a model on a split of a cache, without its towers."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from lexlip.evaluate.grounding import content_terms, grounding
from lexlip.evaluate.recall import SparseVectors, evaluate
from lexlip.features.store import FeatureSplit
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.train.features import FeatureRows

BATCH_SIZE = 512


def vectors_of(model: FrozenLexLIP, split: FeatureSplit, kind: str, head: str) -> SparseVectors:
    """Normalised vectors of a split's "image"s or "text"s, with the row of their image."""
    count = len(split.image_ids) if kind == "image" else len(split.captions)
    reader, parts = FeatureRows(split, kind, np.arange(count)), []
    for first in range(0, count, BATCH_SIZE):
        batch = reader.__getitems__(range(first, min(first + BATCH_SIZE, count)))
        with torch.inference_mode():
            vectors = F.normalize(model.vectors_of_features(kind, batch, head), dim=-1)
        parts.append(SparseVectors.from_dense(vectors, batch["image_id"], batch["order"]))
    return SparseVectors.concatenate(parts)


def evaluated(model: FrozenLexLIP, split: FeatureSplit, head: str, cuts: list[int]) -> dict:
    """What `recall.evaluate` reports, and for the lexicon "grounding"."""
    images, texts = vectors_of(model, split, "image", head), vectors_of(model, split, "text", head)
    metrics = evaluate(images, texts, cuts if head == "lexicon" else [], 0, cut_to_length_one=model.cut_to_length_one)
    if head == "lexicon" and model.tokenizer is not None:
        metrics["grounding"] = grounding(images, split.caption_terms(), content_terms(model.tokenizer.get_vocab()))
    return metrics
