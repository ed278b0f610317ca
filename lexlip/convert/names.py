"""What the importers share: parameter names by tables of patterns, and a text tower's shape from its weights."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lexlip.errors import CheckpointError

HEAD_WIDTH = 64  # of the attention heads of BERT and ViT, which no weight reveals
BERT_NEEDED = (
    "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight", "encoder.layer.0.intermediate.dense.weight",
)  # fmt: skip


def translate(
    weights: Iterable[tuple[str, Tensor]], names: Mapping[str, str], unused: Mapping[str, str], path: str | Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters by our names, and the others with the reason why they are not used.

    Args:
        names: pattern -> our name; the first pattern that matches a whole name counts.
        unused: pattern -> reason; looked at first.

    Raises:
        CheckpointError: a parameter is in neither table.
    """
    state, reasons, unknown = {}, {}, []
    for name, value in weights:
        if reason := _look_up(name, unused):
            reasons[name] = reason
        elif ours := _look_up(name, names):
            state[ours] = value
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{path} holds parameters that no part of the model takes: {', '.join(unknown[:5])}")
    return state, reasons


def _look_up(name: str, table: Mapping[str, str]) -> str | None:
    return next(
        (match.expand(entry) for pattern, entry in table.items() if (match := re.fullmatch(pattern, name))), None
    )


def depth(names: Iterable[str], prefix: str) -> int:
    """How many layers there are, numbered from 0 after a prefix."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix))


def bert_config(weights: Mapping[str, Tensor], prefix: str, heads: int | None = None, dropout: float = 0.1) -> dict:
    """A text tower's `BertConfig` as a dict, from weights that include BERT_NEEDED under a prefix.

    Without `heads` there is one per 64 of width; the dropout is that of states and attention.
    """
    words, positions, types, middle = (weights[prefix + name].shape for name in BERT_NEEDED)
    return {
        "vocab_size": words[0], "hidden_size": words[1],
        "num_hidden_layers": depth(weights, f"{prefix}encoder.layer."),
        "num_attention_heads": max(1, words[1] // HEAD_WIDTH) if heads is None else heads,
        "intermediate_size": middle[0], "max_position_embeddings": positions[0], "type_vocab_size": types[0],
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "layer_norm_eps": 1e-12,
    }  # fmt: skip
