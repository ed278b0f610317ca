"""What a file that one was given may ask for: shapes, never code, files or addresses.

A model folder's config.json and a checkpoint's hyper_parameters come from whoever made them. Their values reach
`timm.create_model` and `BertConfig`, both of which take arguments that fetch, unpickle and write files. So only the
arguments named here pass, each with a value of its kind; everything else is refused by name. The bounds are far above
any tower's and keep what is built for comparison with the weights (`lexlip.models.sizes`) small.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from lexlip.errors import CheckpointError
from lexlip.models.config import HEADS, OFFICIAL_NAMES, TEXT_SIDES, ModelConfig
from lexlip.models.terms import KINDS
from lexlip.ops.max_logits import ACTIVATIONS

LAYERS, WIDTH, SIDE, WORDS = 512, 1 << 16, 4096, 1 << 24  # the most of each; SIDE in pixels
LIST = 16  # entries of a list, such as the depths of the stages
TRUST = "pass trust_sources=True (on the command line --trust-sources)"  # at the end of a refusal
PLAIN_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)  # of timm: an architecture and, after a dot, its weights


class Kind(NamedTuple):
    """Values that an argument may have, and how a message calls them."""

    words: str
    holds: Callable[[object], bool]


def _whole(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _number(low: float, high: float) -> Kind:
    def holds(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high  # NaN is not

    return Kind(f"a number from {low:g} to {high:g}", holds)


def _many(kind: Kind, total: float = math.inf) -> Kind:
    """The kind, or a short list of it that adds up to no more than `total`."""

    def holds(value: object) -> bool:
        if not isinstance(value, (list, tuple)):
            return kind.holds(value)
        return len(value) <= LIST and all(map(kind.holds, value)) and (total == math.inf or sum(value) <= total)

    return Kind(f"{kind.words}, or a list of up to {LIST} such", holds)


def _maybe(kind: Kind) -> Kind:
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
SHORT_NAME = re.compile(r"\w{0,40}", re.ASCII)
NAME = Kind(
    "a short name of letters and digits", lambda value: isinstance(value, str) and bool(SHORT_NAME.fullmatch(value))
)
COUNT, SCALE, RATE = _whole(0, WIDTH), _number(-1e6, 1e6), _number(0, 1)
EITHER = Kind("a number, a name, or true or false", lambda value: any(k.holds(value) for k in (SCALE, NAME, FLAG)))


def _named(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


DEPTHS = ("depth", "depths", "layers", "num_blocks")
# Of timm's towers: BEiT, ViT with DeiT and DINOv2, EVA, Swin, ConvNeXt, ResNet, EfficientNet, mixers.
VIT_KWARGS: dict[str, Kind] = {
    **dict.fromkeys(DEPTHS, _many(_whole(0, LAYERS), LAYERS)),
    **_named(_whole(3, 3), "in_chans"),
    **_named(_maybe(_many(_whole(1, SIDE))), "img_size patch_size window_size ref_feat_shape"),
    **_named(
        _maybe(_many(COUNT)),
        "num_classes embed_dim embed_dims dims channels num_heads num_kv_heads head_dim group_size groups stem_chs "
        "num_features head_hidden_size reg_tokens num_reg_tokens kernel_size kernel_sizes down_kernel_size "
        "stem_kernel_size stem_size stem_width base_width cardinality output_stride block_reduce_first "
        "reduce_first pretrained_window_sizes swiglu_align_to attn_pool_num_heads rope_mrope_section",
    ),
    **_named(
        _maybe(_many(SCALE)),
        "mlp_ratio mlp_ratios bottle_ratio width_factor init_values ls_init_value layer_scale_init_value "
        "head_init_scale norm_eps rope_temperature rope_grid_offset rope_shift_coords rope_jitter_coords "
        "rope_rescale_coords attn_pool_mlp_ratio",
    ),
    **_named(_number(0, LIST), "channel_multiplier depth_multiplier"),
    **_named(
        _many(RATE),
        "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate drop_block_rate",
    ),
    **_named(
        _maybe(FLAG),
        "qkv_bias qkv_fused qk_norm proj_bias scale_attn_norm scale_mlp_norm scale_mlp scale_attn_inner swiglu_mlp "
        "class_token no_embed_class pre_norm final_norm fc_norm use_fc_norm pool_include_prefix fix_init "
        "use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias use_rot_pos_emb rope_rotate_half use_post_norm "
        "use_pre_transformer_norm use_post_transformer_norm attn_only_layer_scale dynamic_img_size dynamic_img_pad "
        "strict_img_size always_partition conv_mlp conv_bias use_grn head_norm_first avg_down preact basic fix_stem "
        "zero_init_last nlhb stem_norm",
    ),
    **_named(
        _maybe(NAME),
        "global_pool act_layer norm_layer embed_norm_layer mlp_layer aa_layer se_layer attn_layer attn_type rope_type "
        "rope_grid_indexing stem_type pad_type weight_init",
    ),
    **_named(EITHER, "pos_embed replace_stem_pool"),
}
TEXT: dict[str, Kind] = {  # of BertConfig, in the order in which a model folder has them
    "vocab_size": _whole(1, WORDS), "hidden_size": _whole(1, WIDTH), "num_hidden_layers": _whole(0, LAYERS),
    "num_attention_heads": _whole(1, SIDE), "intermediate_size": _whole(1, 4 * WIDTH), "hidden_act": NAME,
    "hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE, "max_position_embeddings": _whole(1, WORDS),
    "type_vocab_size": _whole(1, WIDTH), "initializer_range": _number(0, 1000), "layer_norm_eps": RATE,
    "pad_token_id": _maybe(_whole(0, WORDS)),
}  # fmt: skip
_MAPPING = Kind("an object", lambda value: isinstance(value, dict))
FIELDS: dict[str, Kind] = {
    "vit": Kind("a timm name", lambda value: isinstance(value, str) and len(value) <= 1000),
    "image_size": _whole(1, SIDE), "text": _MAPPING, "vit_kwargs": _MAPPING, "image_norm_eps": RATE,
    "max_text_len": _whole(2, WORDS), "corner_tokens": _whole(0, SIDE), "sentence_sep": FLAG,
    "head": Kind(f"one of {', '.join(HEADS)}", lambda value: value in HEADS), "embed_dim": _maybe(_whole(1, WIDTH)),
    "inactive_terms": Kind(
        f"a list of {', '.join(KINDS)}",
        lambda value: isinstance(value, list) and len(value) <= len(KINDS) and all(one in KINDS for one in value),
    ),
    "activation": Kind(f"one of {', '.join(ACTIVATIONS)}", lambda value: value in ACTIVATIONS),
    "text_side": Kind(f"one of {', '.join(TEXT_SIDES)}", lambda value: value in TEXT_SIDES),
    "own_weights": FLAG, "joint_dim": _whole(0, WIDTH), "text_pooler": FLAG, "image_projection": FLAG,
}  # fmt: skip


def refusal(values: Mapping, allowed: Mapping[str, Kind], prefix: str = "") -> str | None:
    """What is wrong with the first of these values that is not allowed; None where all are."""
    for name, value in values.items():
        if name not in allowed:
            return f"{prefix}{shown(name)} is not among the arguments that may be set there (docs/MODELS.md#safety)"
        if not allowed[name].holds(value):
            return f"{prefix}{name}={shown(value)}: it must be {allowed[name].words}"
    return None


def shown(value: object) -> str:
    """A value of a file in a message: in one line and not too long."""
    try:
        text = value if isinstance(value, str) and PLAIN_NAME.fullmatch(value) else repr(value)
    except (ValueError, RecursionError):  # whole numbers of more than 4,300 digits; lists in lists
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_config(config: ModelConfig, where: str | Path, trust_sources: bool = False) -> None:
    """Refuse a config out of a file that asks for more than a shape, or for a shape that cannot be.

    Args:
        where: the file, for the messages.
        trust_sources: also take an image tower whose name leads to the hub or to a folder.

    Raises:
        CheckpointError: naming the file, the field and what it may be.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    wrong = refusal(fields, FIELDS) or refusal(config.vit_kwargs, VIT_KWARGS, "vit_kwargs.")
    wrong = wrong or refusal(config.text, TEXT, "text.") or _contradiction(config)
    if wrong:
        raise CheckpointError(f"{where}: {wrong}")
    name = config.vit
    if name in OFFICIAL_NAMES or PLAIN_NAME.fullmatch(name):
        return
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        raise CheckpointError(f"{where}: vit={shown(name)} is no name of a timm model")
    if not trust_sources:
        raise CheckpointError(
            f"{where}: vit={shown(name)} leads to files elsewhere, which are not read for a file that one was given; "
            f"if you trust both, {TRUST}"
        )


def _contradiction(config: ModelConfig) -> str | None:
    """What is wrong among fields that are right by themselves; absent entries of `text` are BERT's own."""
    words = config.text.get("vocab_size", 30522) - config.corner_tokens
    if "vocab_size" not in config.text:
        return "text.vocab_size is missing"
    if words < 1:
        return f"corner_tokens={config.corner_tokens} leaves no word of text.vocab_size={config.text['vocab_size']}"
    if config.max_words < 2:
        return (
            f"max_text_len={config.max_text_len} has no room for [CLS] and [SEP] beside {config.corner_tokens} corners"
        )
    positions = config.text.get("max_position_embeddings", 512)
    if config.max_text_len > positions:
        return f"max_text_len={config.max_text_len}, but the text tower has {positions} positions"
    if (pad := config.text.get("pad_token_id", 0)) is not None and pad >= words:
        return f"text.pad_token_id={pad} is none of {words} words"
    if config.head == "dense" and config.embed_dim is None:
        return "embed_dim=None: the dense head needs the width of its vectors"
    if config.text_side == "lookup" and not (config.own_weights and "special" in config.inactive_terms):
        return "text_side=lookup needs own_weights and inactive_terms with special: nothing else weighs a text"
    return None
