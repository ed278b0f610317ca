"""Keys of the command line: where they come from and what is refused before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import yaml

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip_data.loading.transforms import TRANSFORM_KEYS

TRAINING_MODES = {
    "bottle": ("self_t", "i2t", "t2t"),
    "con": ("contrastive",),
    "both": ("self_t", "i2t", "t2t", "contrastive"),
}
LOSSES = TRAINING_MODES["both"]
HEADS = ("lexicon", "dense")
NULLABLE = {  # keys whose default says nothing of their type, or that take several
    "version": (str, int, type(None)),
    "resume_from": (str, type(None)),
    "fast_dev_run": (bool, int),
    "precision": (int, str),
    "cpu_threads": (int, type(None)),
    "max_images": (int, dict, type(None)),
    "vit_pretrained": (bool, str),
    "patch_size": (int, type(None)),
    "decay_power": (int, float, str),
    "warmup_steps": (int, float),
    "flops_warmup": (int, float),
    "max_steps": (int, type(None)),
    "val_check_interval": (int, float),
    "eval_batch_size": (int, type(None)),
    "grad_cache_chunk": (int, type(None)),
    "checkpoint_steps": (int, type(None)),
    "trained_positions": (int, type(None)),
}


AT_LEAST_ONE = (
    "image_size max_text_len vocab_size batch_size per_gpu_batchsize num_nodes num_heads text_positions "
    "input_text_embed_size hidden_size input_image_embed_size max_steps max_epoch eval_batch_size "
    "embed_dim trained_positions patch_size cpu_threads grad_cache_chunk checkpoint_steps keep_checkpoints "
    "max_nonfinite_steps log_every collective_timeout"
)
NOT_NEGATIVE = (
    "num_gpus num_workers decoder_layers warmup_steps clip_grad learning_rate end_lr queue_size text_layers "
    "corner_tokens long_captions eval_folds flops_weight flops_warmup weight_decay seed checkpoint_minutes "
    "adam_eps image_norm_eps"
)


def folder() -> Path:
    """Where the YAML files are: configs/ of the checkout, or the copy inside an installed package."""
    here = Path(__file__).resolve().parents[1]
    for place in (here / "configs", here.parent / "configs"):
        if (place / "base.yaml").is_file():
            return place
    raise FileNotFoundError(f"base.yaml is neither in {here / 'configs'} nor in {here.parent / 'configs'}")


def base() -> dict:
    """Every key with its default."""
    return yaml.safe_load((folder() / "base.yaml").read_text())


def named() -> dict[str, dict]:
    """The named configs: each file beside base.yaml, by its name."""
    return {
        path.stem: yaml.safe_load(path.read_text()) or {}
        for path in sorted(folder().glob("*.yaml"))
        if path.stem != "base"
    }


def check(keys: dict) -> dict:
    """Refuse unknown keys, wrong types and contradictions.

    Args:
        keys: all keys of a run.

    Returns:
        The keys, with numbers in their key's type.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    defaults = base()
    keys = dict(keys)
    unknown = sorted(set(keys) - set(defaults))
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; configs/base.yaml lists all of them")
    for key, default in defaults.items():
        if key not in keys:
            raise ConfigError(f"{key} is missing")
        keys[key] = _typed(key, keys[key], default)
    _check_choices(keys)
    _check_numbers(keys)
    return keys


def _typed(key: str, value: object, default: object) -> object:
    allowed = NULLABLE.get(key, (type(default),))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool) and key not in NULLABLE:
        return float(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, bool) and bool not in allowed or not isinstance(value, allowed):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ConfigError(f"{key}={value!r} is {type(value).__name__}; it must be {names}, such as {default!r}")
    return value


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _choose(keys: dict, key: str, allowed: tuple) -> None:
    if keys[key] not in allowed:
        raise ConfigError(f"{key}={keys[key]!r}; it must be one of {', '.join(map(str, allowed))}")


def _check_choices(keys: dict) -> None:
    _choose(keys, "training_mode", tuple(TRAINING_MODES))
    _choose(keys, "head", HEADS)
    _choose(keys, "optim_type", ("adamw", "adam", "sgd"))
    _choose(keys, "lexicon_head", ("auto", "fused", "textbook"))
    _choose(keys, "precision", (16, 32, "16", "32", "bf16", "16-mixed", "bf16-mixed", "32-true"))
    for key in ("train_transform_keys", "val_transform_keys"):
        if len(keys[key]) != 1 or keys[key][0] not in TRANSFORM_KEYS:
            raise ConfigError(f"{key}={keys[key]}; it must hold one of {', '.join(TRANSFORM_KEYS)}")
    power = keys["decay_power"]
    if power != "cosine" and (isinstance(power, str) or power < 0):
        raise ConfigError(f"decay_power={power!r}; it must be a number that is not negative, or 'cosine'")
    wrong = sorted(set(keys["loss_names"]) - set(LOSSES))
    if wrong:
        raise ConfigError(f"loss_names has {wrong[0]!r}; known are {', '.join(LOSSES)}")
    if not keys["datasets"]:
        raise ConfigError("datasets is empty; name at least one data set")
    if not keys["test_only"] and not any(keys["loss_names"].get(n) for n in TRAINING_MODES[keys["training_mode"]]):
        raise ConfigError(
            f"training_mode={keys['training_mode']} trains {TRAINING_MODES[keys['training_mode']]}, "
            f"but loss_names={keys['loss_names']} weighs all of them 0"
        )


def _check_numbers(keys: dict) -> None:
    for key in AT_LEAST_ONE.split():
        if keys[key] is not None and keys[key] < 1:
            raise ConfigError(f"{key}={keys[key]}; it must be at least 1")
    for key in NOT_NEGATIVE.split():
        if keys[key] < 0:
            raise ConfigError(f"{key}={keys[key]}; it must not be negative")
    if keys["mlp_ratio"] <= 0:
        raise ConfigError(f"mlp_ratio={keys['mlp_ratio']}; it must be positive")
    interval = keys["val_check_interval"]
    if interval <= 0 or (isinstance(interval, float) and interval > 1):
        raise ConfigError(f"val_check_interval={interval}; it must be a share of an epoch (up to 1.0) or batches")
    if len(keys["adam_betas"]) != 2 or not all(_number(b) and 0 <= b < 1 for b in keys["adam_betas"]):
        raise ConfigError(f"adam_betas={keys['adam_betas']}; it must be two numbers from 0 up to, but not including, 1")
    if not all(_number(value) and value >= 0 for value in keys["loss_names"].values()):
        raise ConfigError(f"loss_names={keys['loss_names']}; every weight must be a number that is not negative")
    for key in ("train_top_k", "eval_top_k"):
        if not all(isinstance(k, int) and k >= 1 for k in keys[key]):
            raise ConfigError(f"{key}={keys[key]}; it must list whole numbers of terms, such as [32]")
    for key in ("mlm_prob", "decoder_mlm_prob", "drop_rate", "momentum", "max_bad_share"):
        if not 0 <= keys[key] <= 1:
            raise ConfigError(f"{key}={keys[key]}; it must lie between 0 and 1")
    if keys["temperature"] <= 0:
        raise ConfigError(f"temperature={keys['temperature']}; it must be positive")
    for key in ("warmup_steps", "flops_warmup"):
        if isinstance(keys[key], float) and keys[key] > 1:
            raise ConfigError(f"{key}={keys[key]}: as a float it is a share of all steps, at most 1.0")
    if keys["max_text_len"] < 3 + keys["corner_tokens"]:
        corners = f", with corner_tokens={keys['corner_tokens']}," if keys["corner_tokens"] else ""
        raise ConfigError(
            f"max_text_len={keys['max_text_len']}{corners} leaves no room for a word between [CLS] and [SEP]"
        )
    size, patch = keys["image_size"], keys["patch_size"]
    if patch and size % patch:
        near = " or ".join(str(patch * n) for n in (size // patch, size // patch + 1) if n)
        raise ConfigError(f"image_size={size} is not a multiple of patch_size={patch}; {near} would be")
    if keys["hidden_size"] != keys["input_text_embed_size"]:
        raise ConfigError(
            f"hidden_size={keys['hidden_size']} is the weakened decoder's width and must equal "
            f"input_text_embed_size={keys['input_text_embed_size']}"
        )
    if not keys["text_pretrained"] and keys["hidden_size"] % keys["num_heads"]:
        raise ConfigError(f"hidden_size={keys['hidden_size']} does not divide by num_heads={keys['num_heads']}")
    if (keys["grad_cache_chunk"] or 0) > keys["per_gpu_batchsize"]:
        raise ConfigError(
            f"grad_cache_chunk={keys['grad_cache_chunk']} is larger than per_gpu_batchsize="
            f"{keys['per_gpu_batchsize']}, which it is to cut; raise per_gpu_batchsize instead"
        )
    if keys["test_only"]:
        return
    processes = environment.processes(keys)
    per_pass = keys["per_gpu_batchsize"] * processes
    if keys["batch_size"] % per_pass:
        whole = keys["batch_size"] // per_pass
        near = " or ".join(str(per_pass * n) for n in (whole, whole + 1) if n)
        raise ConfigError(
            f"batch_size={keys['batch_size']} does not divide by per_gpu_batchsize={keys['per_gpu_batchsize']} x "
            f"{processes} processes = {per_pass}; {near} would"
        )
