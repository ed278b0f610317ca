"""Checkpoints of the official LexLIP code, turned into model folders.

Every official parameter is used or listed by name with the reason why not. Shapes are read from the weights; the
number of text heads is not in them and defaults to one head per 64 of width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.lexlip import LexLIP
from lexlip.models.positions import CLS_ROWS, resample_relative_table
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.weights import OFFICIAL_MARK, fit, read

HEAD_WIDTH = 64  # of BERT's attention heads, where nothing else is said
BASE = "beit_base_patch16_224"  # the timm architecture whose shape keys are set below

IMAGE_NAMES = (  # official (Hugging Face BEiT) -> timm
    (r"image_transformer\.beit\.embeddings\.cls_token", "image_encoder.backbone.cls_token"),
    (
        r"image_transformer\.beit\.embeddings\.patch_embeddings\.projection\.(.*)",
        r"image_encoder.backbone.patch_embed.proj.\1",
    ),
    (r"image_transformer\.layernorm\.(.*)", r"image_encoder.norm.\1"),
)
LAYER_NAMES = {
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "intermediate.dense.weight": "mlp.fc1.weight",
    "intermediate.dense.bias": "mlp.fc1.bias",
    "output.dense.weight": "mlp.fc2.weight",
    "output.dense.bias": "mlp.fc2.bias",
    "layernorm_before.weight": "norm1.weight",
    "layernorm_before.bias": "norm1.bias",
    "layernorm_after.weight": "norm2.weight",
    "layernorm_after.bias": "norm2.bias",
}
TEXT_NAMES = (
    (r"text_transformer\.bert\.(.*)", r"text_encoder.bert.\1"),
    (r"text_transformer\.cls\.predictions\.transform\.dense\.(.*)", r"text_head.dense.\1"),
    (r"text_transformer\.cls\.predictions\.transform\.LayerNorm\.(.*)", r"text_head.norm.\1"),
    (r"text_transformer\.cls\.predictions\.decoder\.(.*)", r"text_head.decoder.\1"),
    (r"mlm_head_for_image\.predictions\.transform\.dense\.(.*)", r"image_head.dense.\1"),
    (r"mlm_head_for_image\.predictions\.transform\.LayerNorm\.(.*)", r"image_head.norm.\1"),
    (r"mlm_head_for_image\.predictions\.decoder\.(.*)", r"image_head.decoder.\1"),
)
UNUSED = (  # names that carry nothing of their own, and why
    (r".*position_ids", "a counter from 0"),
    (r".*relative_position_index", "computed from the grid"),
    (r".*predictions\.bias", "the same parameter as predictions.decoder.bias"),
    (r"moco_text_transformer\.decoder_heads\..*", "the twin of the decoder is never run"),
    (r".*embeddings\.mask_token", "no picture patches are masked"),
    (r".*\.seq_relationship\..*", "no next-sentence prediction"),
    (r".*\.pooler\..*", "no pooler"),
)
DECODER = r"text_transformer\.decoder_heads\.(.*)"


@dataclass
class Imported:
    """A model and what else the checkpoint held.

    Attributes:
        model: with its weights.
        phase: 1 or 2.
        state: the phase's own parts by its names: weakened decoder, or twins and rings.
        unused: official name -> reason.
    """

    model: LexLIP
    phase: int
    state: dict[str, Tensor]
    unused: dict[str, str] = field(default_factory=dict)


def import_official(
    path: str | Path,
    text_heads: int | None = None,
    image_heads: int | None = None,
    tokenizer: str | None = None,
    rel_pos: str = "2d",
) -> Imported:
    """Read an official checkpoint.

    Args:
        path: the `.ckpt` file.
        text_heads: attention heads of the text tower; None: width / 64.
        image_heads: of the image tower; None: read from the relative-position table.
        tokenizer: hub name or folder, saved along.
        rel_pos: how a table trained at 224 px is brought to a fine-tuned 384 px: "2d", or "official" for the
            official code's own linear interpolation over the flattened table.

    Raises:
        CheckpointError: no official checkpoint, or a name or shape that has no place here.
    """
    content = read(path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not any(str(n).startswith(OFFICIAL_MARK) for n in weights):
        raise CheckpointError(f"{path} is no checkpoint of the official code: it holds no {OFFICIAL_MARK}*")
    saved = content.get("hyper_parameters", {}).get("config", {})
    phase = 2 if any(name.startswith("moco_") for name in weights) else 1
    config = _config(path, weights, saved, text_heads, image_heads)
    grid = _grid(weights)
    if grid is not None:
        weights = _fit_tables(weights, grid, config, rel_pos)

    model_state, state, unused, lost = {}, {}, {}, []
    for name, value in weights.items():
        reason = next((why for pattern, why in UNUSED if re.fullmatch(pattern, name)), None)
        if reason:
            twin = name.replace("predictions.bias", "predictions.decoder.bias")
            if twin != name and twin in weights and not torch.equal(value, weights[twin]):
                raise CheckpointError(f"{path}: {name} and {twin} should be one parameter, but they differ")
            unused[name] = reason
        elif (found := re.fullmatch(DECODER, name)) and phase == 2:
            unused[name] = "Phase 2 trains no decoder"
        elif found:
            state[f"decoder.layers.encoder.layer.{found[1]}"] = value
        elif name in ("image_queue", "text_queue"):
            state[f"{name[:-6]}_ring.keys"] = value.T.contiguous()  # (V, K) there, (K, V) here
            state[f"{name[:-6]}_ring.ids"] = torch.full((value.shape[1],), -1)
            state[f"{name[:-6]}_ring.filled"] = torch.tensor(value.shape[1])
        elif name in ("image_queue_ptr", "text_queue_ptr"):
            state[f"{name[:-10]}_ring.position"] = value.reshape(())
        elif fitted := _translate(name.removeprefix("moco_"), name, weights):
            target, tensor = fitted
            if name.startswith("moco_"):
                state[f"twin.module.{target}"] = tensor
            else:
                model_state[target] = tensor
        elif not re.fullmatch(r".*attention\.attention\.(key|value)\.weight", name):  # went along with the query
            lost.append(name)
    if lost:
        raise CheckpointError(f"{path} holds parameters without a place here: {', '.join(lost[:5])}")

    words = load_tokenizer(tokenizer, config.vocab_size) if tokenizer else None
    model = LexLIP(config, words)
    fit(model, model_state, path)
    return Imported(model.eval(), phase, state, unused)


def _translate(name: str, full: str, weights: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    for pattern, target in (*IMAGE_NAMES, *TEXT_NAMES):
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name), weights[full]
    layer = re.fullmatch(r"image_transformer\.beit\.encoder\.layer\.(\d+)\.(.*)", name)
    if layer is None:
        return None
    block = f"image_encoder.backbone.blocks.{layer[1]}."
    if layer[2] == "attention.attention.query.weight":  # timm keeps the three in one matrix
        names = [full.replace("query.weight", f"{part}.weight") for part in ("query", "key", "value")]
        absent = [name for name in names if name not in weights]
        if absent:
            raise CheckpointError(f"the checkpoint lacks {absent[0]}, which belongs to {full}")
        return f"{block}attn.qkv.weight", torch.cat([weights[name] for name in names])
    target = LAYER_NAMES.get(layer[2])
    return (block + target, weights[full]) if target else None


def _config(path, weights: dict, saved: dict, text_heads: int | None, image_heads: int | None) -> ModelConfig:
    try:
        embeddings = weights["text_transformer.bert.embeddings.word_embeddings.weight"]
        projection = weights["image_transformer.beit.embeddings.patch_embeddings.projection.weight"]
        positions = weights["text_transformer.bert.embeddings.position_embeddings.weight"]
        types = weights["text_transformer.bert.embeddings.token_type_embeddings.weight"]
        middle = weights["text_transformer.bert.encoder.layer.0.intermediate.dense.weight"]
        image_middle = weights["image_transformer.beit.encoder.layer.0.intermediate.dense.weight"]
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}, which every official checkpoint with a BEiT tower has") from error
    table = weights.get(_table_name(0))
    width, patch = projection.shape[0], projection.shape[-1]
    if text_heads is None:
        text_heads = max(1, embeddings.shape[1] // HEAD_WIDTH)
    heads = image_heads if image_heads is not None else (table.shape[1] if table is not None else width // HEAD_WIDTH)
    for option, number, size in (("--text-heads", text_heads, embeddings.shape[1]), ("--image-heads", heads, width)):
        if number < 1 or size % number:
            raise CheckpointError(f"{option} {number} does not divide the width {size} of that tower in {path}")
    if table is not None and heads != table.shape[1]:
        raise CheckpointError(f"--image-heads {heads}, but the position tables in {path} have {table.shape[1]}")
    drop = float(saved.get("drop_rate", 0.1))
    grid = _grid(weights)
    size = int(saved.get("image_size") or (grid or 14) * patch)
    return ModelConfig(
        vit=BASE,
        image_size=size,
        vit_kwargs={
            "patch_size": patch,
            "embed_dim": width,
            "depth": _depth(weights, r"image_transformer\.beit\.encoder\.layer\.(\d+)\."),
            "num_heads": heads,
            "mlp_ratio": image_middle.shape[0] / width,
            "init_values": 0.1 if "image_transformer.beit.encoder.layer.0.lambda_1" in weights else None,
            "use_rel_pos_bias": table is not None,
        },
        text={
            "vocab_size": embeddings.shape[0],
            "hidden_size": embeddings.shape[1],
            "num_hidden_layers": _depth(weights, r"text_transformer\.bert\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": text_heads,
            "intermediate_size": middle.shape[0],
            "max_position_embeddings": positions.shape[0],
            "type_vocab_size": types.shape[0],
            "hidden_dropout_prob": drop,
            "attention_probs_dropout_prob": drop,
            "layer_norm_eps": 1e-12,
        },
        max_text_len=int(saved.get("max_text_len", 40)),
    )


def _depth(weights: dict, pattern: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))


def _table_name(layer: int) -> str:
    return (
        f"image_transformer.beit.encoder.layer.{layer}.attention.attention.relative_position_bias."
        "relative_position_bias_table"
    )


def _grid(weights: dict) -> int | None:
    """Side of the grid that the relative-position tables belong to."""
    table = weights.get(_table_name(0))
    return None if table is None else (round((table.shape[0] - CLS_ROWS) ** 0.5) + 1) // 2


def _fit_tables(weights: dict, grid: int, config: ModelConfig, rel_pos: str) -> dict:
    wanted = config.image_size // config.vit_kwargs["patch_size"]
    if wanted == grid:
        return weights
    return {
        name: _resample(value, grid, wanted, rel_pos) if name.endswith("relative_position_bias_table") else value
        for name, value in weights.items()
    }


def _resample(table: Tensor, old: int, new: int, rel_pos: str) -> Tensor:
    if rel_pos == "2d":
        return resample_relative_table(table, (old, old), (new, new))
    # The official code's way: the flattened table, CLS rows included, stretched as one line. Its scale aims a tenth
    # of a row too far so that rounding down gives the right length.
    rows = (2 * new - 1) ** 2 + CLS_ROWS
    scale = (rows + 0.1) / len(table)
    line = F.interpolate(table.T[None], scale_factor=scale, mode="linear", align_corners=False)
    return line[0].T.contiguous()
