"""Checkpoints of the official LexLIP code, turned into model folders.

Every official parameter is used, or listed by name with the reason why it is not. Shapes are read from the weights; the
number of text heads is not in them and defaults to one head per 64 of width.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lexlip.convert.names import BERT_NEEDED, HEAD_WIDTH, bert_config, depth, translate
from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.lexlip import LexLIP
from lexlip.models.positions import CLS_ROWS, resample_relative_table, stretch_as_official
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.trust import check_config
from lexlip.models.weights import MODEL_PREFIX, OFFICIAL_MARK, check_shape, fit, read, state_of

ARCHITECTURE = "beit_base_patch16_224"  # timm's name; all of its shape is set below
IMAGE, TEXT = "image_transformer.beit.", "text_transformer.bert."
PROJECTION = f"{IMAGE}embeddings.patch_embeddings.projection.weight"
MLP = f"{IMAGE}encoder.layer.0.intermediate.dense.weight"
NEEDED = (PROJECTION, MLP, *(TEXT + name for name in BERT_NEEDED))
QUERY = ".attention.attention.query.weight"
TABLE = "attention.attention.relative_position_bias.relative_position_bias_table"

_LAYER = {  # of a layer of Hugging Face's BEiT -> timm's; \2 is what follows
    r"lambda_(.*)": r"gamma_\2",
    r"attention\.attention\.query\.bias": "attn.q_bias",
    r"attention\.attention\.value\.bias": "attn.v_bias",
    r"attention\.attention\.qkv\.weight": "attn.qkv.weight",
    re.escape(TABLE): "attn.relative_position_bias_table",
    r"attention\.output\.dense\.(.*)": r"attn.proj.\2",
    r"intermediate\.dense\.(.*)": r"mlp.fc1.\2",
    r"output\.dense\.(.*)": r"mlp.fc2.\2",
    r"layernorm_before\.(.*)": r"norm1.\2",
    r"layernorm_after\.(.*)": r"norm2.\2",
}
_MODEL = {
    r"image_transformer\.beit\.embeddings\.cls_token": "image_encoder.backbone.cls_token",
    r"image_transformer\.beit\.embeddings\.patch_embeddings\.projection\.(.*)":
        r"image_encoder.backbone.patch_embed.proj.\1",
    r"image_transformer\.layernorm\.(.*)": r"image_encoder.norm.\1",
    **{
        rf"image_transformer\.beit\.encoder\.layer\.(\d+)\.{theirs}": rf"image_encoder.backbone.blocks.\1.{ours}"
        for theirs, ours in _LAYER.items()
    },
    r"text_transformer\.bert\.(.*)": r"text_encoder.bert.\1",
    r"text_transformer\.cls\.predictions\.transform\.LayerNorm\.(.*)": r"text_head.norm.\1",
    r"text_transformer\.cls\.predictions\.(?:transform\.)?(dense|decoder)\.(.*)": r"text_head.\1.\2",
    r"mlm_head_for_image\.predictions\.transform\.LayerNorm\.(.*)": r"image_head.norm.\1",
    r"mlm_head_for_image\.predictions\.(?:transform\.)?(dense|decoder)\.(.*)": r"image_head.\1.\2",
}  # fmt: skip
NAMES = {  # official, as `_reshaped` gives them -> in our checkpoints
    **{theirs: MODEL_PREFIX + ours for theirs, ours in _MODEL.items()},
    **{f"moco_{theirs}": f"twin.module.{ours}" for theirs, ours in _MODEL.items()},
    r"text_transformer\.decoder_heads\.(.*)": r"decoder.layers.encoder.layer.\1",
    r"(image|text)_queue": r"\1_ring.keys",
    r"(image|text)_queue_(ids|filled)": r"\1_ring.\2",
    r"(image|text)_queue_ptr": r"\1_ring.position",
}
_UNUSED = {  # names that carry nothing of their own, and why
    r".*position_ids": "a counter from 0",
    r".*relative_position_index": "computed from the grid",
    r".*predictions\.bias": "the same parameter as predictions.decoder.bias",
    r"moco_text_transformer\.decoder_heads\..*": "the decoder's momentum copy is never run",
    r".*embeddings\.mask_token": "no image patches are masked",
    r".*\.seq_relationship\..*": "no next-sentence prediction",
    r".*\.pooler\..*": "no pooler",
}
UNUSED = {1: _UNUSED, 2: {r"text_transformer\.decoder_heads\..*": "Phase 2 trains no decoder", **_UNUSED}}


class Imported(NamedTuple):
    """A model and what else the checkpoint held."""

    model: LexLIP
    phase: int  # 1 or 2
    state: dict[str, Tensor]  # the phase's own parts by its names: weakened decoder, or momentum encoder and queues
    unused: dict[str, str]  # official name -> reason


def import_official(
    path: str | Path, text_heads: int | None = None, image_heads: int | None = None, tokenizer: str | None = None,
    rel_pos: str = "2d",
) -> Imported:  # fmt: skip
    """Read an official checkpoint.

    Args:
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
    if not isinstance(weights, dict) or not any(str(name).startswith(OFFICIAL_MARK) for name in weights):
        raise CheckpointError(f"{path} is no checkpoint of the official code: it holds no {OFFICIAL_MARK}*")
    weights = state_of(content, path)
    kept = content.get("hyper_parameters")
    saved = kept.get("config") if isinstance(kept, dict) else None
    saved = saved if isinstance(saved, dict) else {}
    phase = 2 if any(name.startswith("moco_") for name in weights) else 1
    config = _config(path, weights, saved, text_heads, image_heads)
    check_config(config, path)
    grid = config.image_size // config.vit_kwargs["patch_size"]

    state, unused = translate(_reshaped(weights, grid, rel_pos), NAMES, UNUSED[phase], path)
    for name in unused:
        same = name.replace("predictions.bias", "predictions.decoder.bias")
        if same != name and same in weights and not torch.equal(weights[name], weights[same]):
            raise CheckpointError(f"{path}: {name} and {same} should be one parameter, but they differ")
    of_model = {name for name in state if name.startswith(MODEL_PREFIX)}
    weights = {name.removeprefix(MODEL_PREFIX): state.pop(name) for name in of_model}
    check_shape(LexLIP, config, weights, path, path)
    model = LexLIP(config, load_tokenizer(tokenizer, config.vocab_size) if tokenizer else None)
    fit(model, weights, path)
    return Imported(model.eval(), phase, state, unused)


def _reshaped(weights: dict[str, Tensor], grid: int, rel_pos: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters by official names, as our tensors: tables for the grid, projections in one matrix, queues by rows."""
    for name, value in weights.items():
        if name.endswith(TABLE):
            yield name, _resample(value, _grid(value), grid, rel_pos)
        elif name.endswith(QUERY):  # timm keeps the three projections in one matrix
            names = [name.replace("query", part) for part in ("query", "key", "value")]
            absent = [name for name in names if name not in weights]
            if absent:
                raise CheckpointError(f"the checkpoint lacks {absent[0]}, which belongs to {name}")
            yield name.replace("query", "qkv"), torch.cat([weights[name] for name in names])
        elif name in ("image_queue", "text_queue"):
            yield name, value.T.contiguous()  # (V, K) there, (K, V) here
            yield f"{name}_ids", torch.full((value.shape[1],), -1)
            yield f"{name}_filled", torch.tensor(value.shape[1])
        elif name.endswith("_queue_ptr"):
            yield name, value.reshape(())
        elif not re.fullmatch(r".*\.attention\.attention\.(key|value)\.weight", name):  # went along with the query
            yield name, value


def _config(
    path: str | Path, weights: dict[str, Tensor], saved: dict, text_heads: int | None, image_heads: int | None
) -> ModelConfig:
    absent = [name for name in NEEDED if name not in weights]
    if absent:
        raise CheckpointError(f"{path} lacks '{absent[0]}', which every official checkpoint with a BEiT tower has")
    text = bert_config(weights, TEXT, text_heads, float(saved.get("drop_rate", 0.1)))
    width, patch = weights[PROJECTION].shape[0], weights[PROJECTION].shape[-1]
    table = weights.get(f"{IMAGE}encoder.layer.0.{TABLE}")
    heads = image_heads if image_heads is not None else width // HEAD_WIDTH if table is None else table.shape[1]
    for option, number, size in (
        ("--text-heads", text["num_attention_heads"], text["hidden_size"]),
        ("--image-heads", heads, width),
    ):
        if number < 1 or size % number:
            raise CheckpointError(f"{option} {number} does not divide the width {size} of that tower in {path}")
    if table is not None and heads != table.shape[1]:
        raise CheckpointError(f"--image-heads {heads}, but the position tables in {path} have {table.shape[1]}")
    return ModelConfig(
        vit=ARCHITECTURE,
        image_size=int(saved.get("image_size") or (14 if table is None else _grid(table)) * patch),
        vit_kwargs={
            "patch_size": patch, "embed_dim": width, "depth": depth(weights, f"{IMAGE}encoder.layer."),
            "num_heads": heads, "mlp_ratio": weights[MLP].shape[0] / width,
            "init_values": 0.1 if f"{IMAGE}encoder.layer.0.lambda_1" in weights else None,
            "use_rel_pos_bias": table is not None,
        },
        text=text,
        max_text_len=int(saved.get("max_text_len", 40)),
    )  # fmt: skip


def _grid(table: Tensor) -> int:
    """Side of the grid that a relative-position table belongs to."""
    return (round((table.shape[0] - CLS_ROWS) ** 0.5) + 1) // 2


def _resample(table: Tensor, old: int, new: int, rel_pos: str) -> Tensor:
    if rel_pos == "2d" or old == new:
        return resample_relative_table(table, (old, old), (new, new))
    if new < old:
        raise CheckpointError(
            f"--rel-pos official: the official code only enlarges position tables, here of {old} x {old} patches, "
            f"never to {new} x {new}; leave the option out"
        )
    return stretch_as_official(table, (new, new))
