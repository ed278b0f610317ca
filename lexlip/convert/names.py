"""What the importers share: parameter names by tables of patterns, and a text tower's shape from its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lexlip.errors import CheckpointError

HEAD_WIDTH = 64  # of the attention heads of BERT and ViT, which no weight tells
BERT_NEEDED = (
    "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight", "encoder.layer.0.intermediate.dense.weight",
)  # fmt: skip


def translate(name: str, table: Mapping[str, str]) -> str | None:
    """Our name for a parameter, by the first pattern of a table that matches all of it; None where none does."""
    return next((match.expand(ours) for theirs, ours in table.items() if (match := re.fullmatch(theirs, name))), None)


def refuse_unknown(names: list[str], path: str | Path) -> None:
    """Raise a `CheckpointError` that names the first parameters for which no table has an entry, if there are any."""
    if names:
        raise CheckpointError(f"{path} holds parameters without a place here: {', '.join(names[:5])}")


def depth(names: Iterable[str], prefix: str) -> int:
    """How many layers there are, numbered from 0 after a prefix."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix))


def bert_config(weights: Mapping[str, Tensor], prefix: str, heads: int | None = None, dropout: float = 0.1) -> dict:
    """A text tower's `BertConfig` as a dict, from weights that include BERT_NEEDED under a prefix.

    Args:
        heads: attention heads; None: one per 64 of width.
        dropout: of states and attention.
    """
    words, positions, types, middle = (weights[prefix + name].shape for name in BERT_NEEDED)
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_hidden_layers": depth(weights, f"{prefix}encoder.layer."),
        "num_attention_heads": max(1, words[1] // HEAD_WIDTH) if heads is None else heads,
        "intermediate_size": middle[0],
        "max_position_embeddings": positions[0],
        "type_vocab_size": types[0],
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "layer_norm_eps": 1e-12,
    }
