"""Models of open_clip (an optional package), or one side of them in a folder that `embed_tower` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.sizes import read_json
from lexlip.models.towers.packed import Storage, packed, unpacked
from lexlip.models.towers.reference import HUB, LOCAL, Reference
from lexlip.models.trust import TRUST
from lexlip.models.weights import save_tensors
from lexlip.utils.files import write_json

CONFIG = "open_clip_config.json"
ONE_SIDE = "one_side.safetensors"  # in a folder: the weights of one side alone


def create(reference: Reference, side: str) -> tuple[Any, Any]:
    """open_clip, and a model of it whose `side`, "image" or "text", has its weights; the other side is taken out.

    Raises:
        ConfigError: open_clip is not installed, knows no such model or weights, or cannot load them.
        CheckpointError: the file of one side is damaged, or of another model.
    """
    open_clip = library(reference)
    name, tag = architecture(reference)
    known = open_clip.get_pretrained_cfg(name, tag) if tag and not reference.file else None
    file = reference.folder / ONE_SIDE if reference.folder else None
    options: dict = {"pretrained": str(reference.weights) if reference.weights else tag, "require_pretrained": True}
    if file is not None and file.is_file():
        options = {"load_weights": False, "pretrained_text": False}
    try:
        model = open_clip.create_model(
            name, weights_only=True, force_quick_gelu=bool((known or {}).get("quick_gelu")), **options
        )
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
        raise ConfigError(f"open_clip cannot load {reference}: {error}") from error
    if side == "text":
        model.visual = None
    if file is not None and file.is_file():
        _fill(model.visual if side == "image" else model, file)
    return open_clip, model


def _fill(module: nn.Module, file: Path) -> None:
    try:
        module.load_state_dict(unpacked(load_file(file)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged or of another model ({str(error).splitlines()[0]})") from error


def write_side(backbone: Any, reference: Reference, inside: Path, storage: Storage) -> None:
    """One side as a folder that `create` reads: architecture, preprocessing and weights, and a tokenizer's files.

    Raises:
        ConfigError: the architecture is not known any more.
    """
    inside.mkdir(exist_ok=True)
    if reference.folder:
        config: Any = read_json(reference.folder / CONFIG)
    else:
        open_clip = library(reference)
        name, tag = architecture(reference)
        config = {"model_cfg": open_clip.get_model_config(name)}
        if config["model_cfg"] is None:
            raise ConfigError(f"tower {reference}: open_clip does not tell its architecture, so it cannot be embedded")
        if (open_clip.get_pretrained_cfg(name, tag) if tag and not reference.file else {}).get("quick_gelu"):
            config["model_cfg"] = {**config["model_cfg"], "quick_gelu": True}
    visual = getattr(backbone, "visual", None)
    if visual is not None:
        config["preprocess_cfg"] = json.loads(json.dumps(visual.preprocess_cfg))
    wrapped: Any = getattr(getattr(getattr(backbone, "tokenizer", None), "inner", None), "tokenizer", None)
    if hasattr(wrapped, "save_pretrained"):
        wrapped.save_pretrained(inside)
    write_json(config, inside / CONFIG)
    state = (visual if visual is not None else backbone.model).state_dict()
    save_tensors(packed(state, storage), inside / ONE_SIDE)


def library(reference: Reference) -> Any:
    """open_clip; ConfigError where it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"tower {reference} needs open_clip: pip install -e '.[open_clip]'") from error
    return open_clip


def architecture(reference: Reference) -> tuple[str, str | None]:
    """open_clip's name of the architecture and of the weights."""
    if reference.folder:
        return f"{LOCAL}{reference.folder}", None
    if reference.name.startswith(HUB):
        return reference.name, None
    model, _, tag = (reference.name, "", "") if reference.file else reference.name.rpartition("/")
    if not (model and tag) and not reference.file:
        raise ConfigError(
            f"tower {reference} without weights would be random; give open_clip:MODEL/WEIGHTS, such as "
            "open_clip:ViT-B-32/openai, or open_clip:MODEL@FILE"
        )
    return model.replace("/", "-"), tag or None


def check_architecture(reference: Reference) -> None:
    """Refuse an architecture that is itself a name on the hub, which open_clip would fetch.

    Raises:
        ConfigError: naming it.
        CheckpointError: the folder's config cannot be read.
    """
    if reference.folder:
        config: Any = read_json(reference.folder / CONFIG)
        config = config.get("model_cfg") or {}
    else:
        config = library(reference).get_model_config(architecture(reference)[0]) or {}
    parts = [(config.get("text_cfg") or {}).get(key) for key in ("hf_model_name", "hf_tokenizer_name")]
    timm_name = (config.get("vision_cfg") or {}).get("timm_model_name") or ""
    leads = next((part for part in (*parts, timm_name if ":" in timm_name else None) if part), None)
    if leads:
        raise ConfigError(
            f"tower {reference} is built of {leads}, which would be fetched by its name; if you trust who wrote the "
            f"name, {TRUST}"
        )
