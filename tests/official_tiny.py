"""Tiny checkpoints of the official code, by its names and as its trainer wrote them. Random weights, no file needed."""

from __future__ import annotations

import torch
from torch import Tensor

LAYERS, HEADS, PATCH = 2, 2, 8


def _linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert_layer(at: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= _linear(f"{at}.attention.self.{part}", width, width)
    shapes |= _linear(f"{at}.attention.output.dense", width, width) | _norm(f"{at}.attention.output.LayerNorm", width)
    shapes |= _linear(f"{at}.intermediate.dense", 2 * width, width) | _linear(f"{at}.output.dense", width, 2 * width)
    return shapes | _norm(f"{at}.output.LayerNorm", width)


def _beit_layer(at: str, width: int, grid: int) -> dict[str, tuple[int, ...]]:
    own = f"{at}.attention.attention"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.lambda_1": (width,), f"{at}.lambda_2": (width,)}
    shapes |= _linear(f"{own}.query", width, width) | _linear(f"{own}.key", width, width, bias=False)
    shapes |= _linear(f"{own}.value", width, width)
    shapes[f"{own}.relative_position_bias.relative_position_bias_table"] = ((2 * grid - 1) ** 2 + 3, HEADS)
    shapes |= _linear(f"{at}.attention.output.dense", width, width)
    shapes |= _linear(f"{at}.intermediate.dense", 2 * width, width) | _linear(f"{at}.output.dense", width, 2 * width)
    return shapes | _norm(f"{at}.layernorm_before", width) | _norm(f"{at}.layernorm_after", width)


def shapes(
    width: int = 16, words: int = 40, positions: int = 64, grid: int = 4, layers: int = LAYERS
) -> dict[str, tuple[int, ...]]:
    """Official names of the parameters of both towers, the image head and the decoder, with their shapes."""
    image, text = "image_transformer.beit", "text_transformer.bert"
    found: dict[str, tuple[int, ...]] = {f"{image}.embeddings.cls_token": (1, 1, width)}
    patches = f"{image}.embeddings.patch_embeddings.projection"
    found |= {f"{patches}.weight": (width, 3, PATCH, PATCH), f"{patches}.bias": (width,)}
    for layer in range(layers):
        found |= _beit_layer(f"{image}.encoder.layer.{layer}", width, grid)
    found |= _norm("image_transformer.layernorm", width)
    for part, rows in (("word", words), ("position", positions), ("token_type", 2)):
        found[f"{text}.embeddings.{part}_embeddings.weight"] = (rows, width)
    found |= _norm(f"{text}.embeddings.LayerNorm", width)
    for layer in range(layers):
        found |= _bert_layer(f"{text}.encoder.layer.{layer}", width)
    for head in ("text_transformer.cls", "mlm_head_for_image"):
        at = f"{head}.predictions"
        found |= {f"{at}.bias": (words,)} | _linear(f"{at}.transform.dense", width, width)
        found |= _norm(f"{at}.transform.LayerNorm", width) | _linear(f"{at}.decoder", words, width)
    for layer in range(2):
        found |= _bert_layer(f"text_transformer.decoder_heads.{layer}", width)
    return found


def weights(**sizes: int) -> dict[str, Tensor]:
    """Random tensors of `shapes`; a head's two biases are one."""
    random = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=random) / 4 for name, shape in shapes(**sizes).items()}
    for head in ("text_transformer.cls", "mlm_head_for_image"):
        state[f"{head}.predictions.bias"] = state[f"{head}.predictions.decoder.bias"]
    return state


def checkpoint(state: dict[str, Tensor], callback: type, image_size: int = 32) -> dict:
    """What pytorch-lightning 1.3.2 saves of a run in 16 bits: callbacks by their classes, its states."""
    moments = {
        number: {"step": 7, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
        for number, value in enumerate(state.values())
    }
    group = {"weight_decay": 0.01, "lr": 5e-5, "betas": (0.9, 0.999), "eps": 1e-8, "correct_bias": True}
    best = {
        "monitor": "val/the_metric", "best_model_score": torch.tensor(2.5), "best_model_path": "/path/best.ckpt",
        "current_score": torch.tensor(2.5), "dirpath": "/path",
    }  # fmt: skip
    return {
        "epoch": 1, "global_step": 7, "pytorch-lightning_version": "1.3.2", "state_dict": state,
        "callbacks": {callback: best},
        "optimizer_states": [{"state": moments, "param_groups": [{**group, "params": list(moments)}]}],
        "lr_schedulers": [{
            "base_lrs": [5e-5, 5e-5], "last_epoch": 7, "_step_count": 8, "verbose": False, "_last_lr": [1e-5, 1e-5],
            "_get_lr_called_within_step": False, "lr_lambdas": [None, None],
        }],
        "native_amp_scaling_state": {
            "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000,
            "_growth_tracker": 7,
        },
        "hparams_name": "config",
        "hyper_parameters": {"config": {
            "image_size": image_size, "max_text_len": 8, "drop_rate": 0.1, "datasets": ["f30k"], "load_path": "",
            "loss_names": {"contrastive": 1, "i2t": 1, "t2t": 1, "self_t": 1}, "training_mode": "both",
        }},
    }  # fmt: skip
