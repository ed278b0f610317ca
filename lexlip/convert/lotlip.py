"""Checkpoints of LoTLIP, or of any model in open_clip's layout with the same towers, turned into model folders.

The layout: a timm ViT under `visual.trunk`, a Hugging Face BERT with its pooler under `text.transformer`, its words
followed by the corner tokens, a projection `text.proj` without bias, and `logit_scale`. Shapes are read from the
weights; every parameter is used or refused by name.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.dense import DenseLIP
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.weights import fit, read

CONTEXT = 128  # tokens that LoTLIP reads
HEAD_WIDTH = 64  # of the attention heads of BERT and of ViT
NORM_EPS = 1e-6  # of timm's ViT

NAMES = (  # open_clip -> here
    (r"visual\.trunk\.norm\.(.*)", r"image_encoder.norm.\1"),
    (r"visual\.trunk\.(.*)", r"image_encoder.backbone.\1"),
    (r"visual\.head\.proj\.weight", "image_projection.weight"),
    (r"text\.transformer\.pooler\.dense\.(.*)", r"text_pooler.\1"),
    (r"text\.transformer\.(.*)", r"text_encoder.bert.\1"),
    (r"text\.proj\.weight", "text_projection.weight"),
    (r"logit_scale", "logit_scale"),
)
COUNTERS = ("text.transformer.embeddings.position_ids", "text.transformer.embeddings.token_type_ids")
NEEDED = (
    "visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "visual.trunk.blocks.0.mlp.fc1.weight",
    "text.transformer.embeddings.word_embeddings.weight", "text.transformer.embeddings.position_embeddings.weight",
    "text.transformer.embeddings.token_type_embeddings.weight", "text.proj.weight",
    "text.transformer.encoder.layer.0.intermediate.dense.weight",
)  # fmt: skip


def import_lotlip(path: str | Path, corner_tokens: int = 2, tokenizer: str | None = None) -> DenseLIP:
    """Read a LoTLIP checkpoint.

    Args:
        path: the file, a state dict or a training checkpoint that holds one.
        corner_tokens: how many of the last words are corners; the weights do not say.
        tokenizer: hub name or folder, saved along.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: another layout, or a name or shape that has no place here.
        ConfigError: a tokenizer that does not fit the words that are left beside the corners.
    """
    content = read(path)
    weights = content.get("state_dict", content)
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    absent = [name for name in NEEDED if not isinstance(weights.get(name), Tensor)]
    if absent:
        raise CheckpointError(f"{path} is no LoTLIP checkpoint: it holds no {absent[0]}")
    words = len(weights["text.transformer.embeddings.word_embeddings.weight"])
    if not 0 <= corner_tokens < words:
        raise CheckpointError(f"--corner-tokens {corner_tokens}: {path} has {words} words, the corners among them")
    config = _config(weights, corner_tokens)
    state, lost = {}, []
    for name, value in weights.items():
        target = next((re.sub(a, b, name) for a, b in NAMES if re.fullmatch(a, name)), None)
        if target is not None and name not in COUNTERS:
            state[target] = value
        elif name not in COUNTERS:
            lost.append(name)
    if lost:
        raise CheckpointError(f"{path} holds parameters without a place here: {', '.join(lost[:5])}")
    model = DenseLIP(config, load_tokenizer(tokenizer, config.vocab_size) if tokenizer else None)
    fit(model, state, path)
    return model.eval()


def _config(weights: dict[str, Tensor], corner_tokens: int) -> ModelConfig:
    patches, middle, words, positions, types, projection, text_middle = (
        weights[name].shape for name in NEEDED if name != "visual.trunk.pos_embed"
    )
    width, patch = patches[0], patches[-1]
    side = round((weights["visual.trunk.pos_embed"].shape[1] - 1) ** 0.5)
    return ModelConfig(
        head="dense",
        vit="vit_base_patch16_224",
        vit_kwargs={
            "patch_size": patch,
            "embed_dim": width,
            "depth": _depth(weights, r"visual\.trunk\.blocks\.(\d+)\."),
            "num_heads": max(1, width // HEAD_WIDTH),
            "mlp_ratio": middle[0] / width,
        },
        image_size=side * patch,
        image_norm_eps=NORM_EPS,
        text={
            "vocab_size": words[0],
            "hidden_size": words[1],
            "num_hidden_layers": _depth(weights, r"text\.transformer\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, words[1] // HEAD_WIDTH),
            "intermediate_size": text_middle[0],
            "max_position_embeddings": positions[0],
            "type_vocab_size": types[0],
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "layer_norm_eps": 1e-12,
        },
        max_text_len=min(CONTEXT, positions[0]),
        corner_tokens=corner_tokens,
        sentence_sep=True,
        embed_dim=projection[0],
        text_pooler="text.transformer.pooler.dense.weight" in weights,
        image_projection="visual.head.proj.weight" in weights,
    )


def _depth(weights: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))
