"""Heads that begin from a cache of features: which terms there are, what they mean, and who teaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lexlip.errors import ConfigError
from lexlip.features.store import FeatureSplit, FeatureStore
from lexlip.features.vocabulary import read_vocabulary
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.heads import LookupText
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.terms import terms_of_kinds
from lexlip.models.weights import known_config, model_weights
from lexlip.train.config import Config

OWN = "own"  # teacher: the cosines of the frozen towers' own vectors, where they have a common space (D2S)
STATISTICS_ROWS = 20_000  # tokens of images whose features give mean and deviation
LEAST_IMAGES = 1_000  # of which they are


def new_heads(config: Config, store: FeatureStore) -> FrozenLexLIP:
    """Heads that fit a cache, with the dense reference of `teacher` in place.

    Raises:
        ConfigError: no term is frequent enough, or the teacher was trained on other features.
    """
    split = store.split("train")
    counts = split.term_counts()
    inactive = terms_of_kinds(store.tokenizer.get_vocab(), config.inactive_terms, len(counts)).numpy()
    terms = np.flatnonzero((counts >= config.term_min_count) & ~inactive)
    if not len(terms):
        chosen = f" and active with inactive_terms={config.inactive_terms}" if config.inactive_terms else ""
        raise ConfigError(
            f"term_min_count={config.term_min_count}: no word piece of the {len(split.captions)} training captions is "
            f"in so many of them{chosen}; lower it, or add captions"
        )
    dense = config.head == "dense"
    teacher: dict[str, torch.Tensor] = {}
    embed_dim = config.embed_dim if dense else 0
    if config.teacher == OWN and not dense:
        _check_common_space(store)
    elif config.teacher and not dense:
        teacher, embed_dim = _teacher(config.teacher, store)
    choices: dict[str, Any] = {
        "text_head": config.head_text,
        "head": config.head,
        "activation": config.activation,
        "separate_tables": config.separate_tables,
    }
    shape = FrozenConfig(
        image_tower=store.facts["image"]["reference"], image_width=store.image_width,
        text_tower=store.facts["text"]["reference"], text_width=store.text_width, pooled_width=store.pooled_width,
        vocab_size=len(store.tokenizer), terms=len(terms), width=config.head_width,
        row_terms=config.row_terms, embed_dim=embed_dim, max_text_len=config.max_text_len, **choices,
        tower_facts={side: store.facts[side] for side in ("image", "text")},
    )  # fmt: skip
    model = FrozenLexLIP(shape, store.tokenizer, config.image_dropout, config.text_dropout)
    _start(model, store, split, terms, counts)
    if teacher:
        assert model.dense_heads is not None
        model.dense_heads.load_state_dict(teacher)
        model.dense_heads.requires_grad_(False)
    return model


def _start(
    model: FrozenLexLIP, store: FeatureStore, split: FeatureSplit, terms: np.ndarray, counts: np.ndarray
) -> None:
    count = min(len(split.image_ids), max(LEAST_IMAGES, STATISTICS_ROWS // store.image_tokens))
    features = split.images(np.linspace(0, len(split.image_ids) - 1, count).astype(np.int64)).float()
    if model.dense_heads is not None:
        model.dense_heads.standardise.fit(features.mean(1))  # of which it makes its vectors
    if model.lexicon_heads is None:
        return
    model.lexicon_heads.standardise.fit(features.flatten(0, 1))
    vocabulary = read_vocabulary(store.folder, len(store.tokenizer))
    ids = torch.from_numpy(terms)
    embeddings = vocabulary.embeddings[ids].float() if vocabulary.embeddings is not None else None
    if embeddings is not None and embeddings.shape[1] != model.config.width:
        embeddings = None
    idf = torch.from_numpy(np.log(len(split.captions) / counts[terms])).float()
    model.lexicon_heads.start(ids, embeddings, idf)
    if isinstance(model.lexicon_heads.text_side, LookupText):
        model.lexicon_heads.text_side.words.copy_(vocabulary.words[ids])


def _check_common_space(store: FeatureStore) -> None:
    """Refuse towers whose vectors cannot be compared with each other."""
    if store.image_tokens > 1 or store.image_width != store.pooled_width:
        raise ConfigError(
            f"teacher={OWN}: the towers' own scores are cosines of one vector of each image, {store.image_tokens} x "
            f"{store.image_width} numbers in {store.folder}, and of each text, {store.pooled_width}; cache both sides "
            "of one model, such as CLIP, with #pooled, or train a dense reference with head=dense"
        )


def _teacher(path: str, store: FeatureStore) -> tuple[dict[str, torch.Tensor], int]:
    """The weights of a dense reference, and its width."""
    config = known_config(path)
    if not isinstance(config, FrozenConfig) or not config.embed_dim:
        raise ConfigError(f"teacher={path} holds no dense reference on frozen towers; train one with head=dense")
    for side in ("image", "text"):
        if config.tower_facts.get(side, {}).get("weights") != store.facts[side]["weights"]:
            raise ConfigError(
                f"teacher={path} was trained on features of another {side} tower than {store.folder} holds: "
                f"{config.tower_facts.get(side, {}).get('reference')}, not {store.facts[side]['reference']}"
            )
    weights = model_weights(path)
    return {
        n.removeprefix("dense_heads."): v for n, v in weights.items() if n.startswith("dense_heads.")
    }, config.embed_dim
