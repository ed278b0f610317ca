"""Towers into a model folder, so that it needs nothing from outside."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from timm.data import resolve_model_data_config

from lexlip.models.towers.hf_images import EIGHT_BITS
from lexlip.models.towers.open_clip_side import write_side
from lexlip.models.towers.packed import Storage, packed
from lexlip.models.towers.reference import Reference, parse, split_references
from lexlip.models.towers.sentence import read_recipe
from lexlip.models.weights import read, save_tensors
from lexlip.utils.files import write_json

PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
UNUSED = ("*.h5", "*.onnx", "*.msgpack", "*.ot", "onnx", "openvino", ".git*", ".cache")  # of a folder
WEIGHTS = ("model*.safetensors*", EIGHT_BITS)


def embed_tower(tower: Any, folder: Path, side: str, storage: Storage) -> str:
    """Write a tower into a folder; gives the reference that loads it from there.

    Args:
        side: "image" or "text", how its files are named.
        storage: of its numbers.

    Raises:
        ConfigError: an open_clip model whose architecture is not told.
    """
    parts = split_references(tower.reference)
    towers = list(tower.towers) if len(parts) > 1 else [tower]
    names = [f"{side}_tower" if len(parts) == 1 else f"{side}_tower_{n}" for n in range(len(parts))]
    made = [_embed(one, parse(part), folder, name, storage) for one, part, name in zip(towers, parts, names)]
    return " + ".join(made)


def _embed(tower: Any, reference: Reference, folder: Path, name: str, storage: Storage) -> str:
    if reference.kind == "open_clip":
        write_side(tower.backbone, reference, folder / name, storage)
        return str(replace(reference, name=name, file=None))
    model = tower.backbone.model
    if reference.kind == "timm":
        return _embed_timm(model, reference, folder, name, storage)
    source, inside = reference.folder or Path(snapshot_download(reference.name, local_files_only=True)), folder / name
    recipe = read_recipe(reference) if hasattr(tower.backbone, "recipe") else None
    transformer = (recipe and recipe.transformer.folder) or source  # maybe a folder of its own, beside later layers
    copied = storage == "full" and any(file for kind in WEIGHTS for file in transformer.glob(kind))
    where = inside / transformer.relative_to(source)
    left_out = partial(_left_out, transformer if recipe else None, copied)
    shutil.copytree(source, inside, dirs_exist_ok=True, ignore=left_out)
    for old in [file for kind in WEIGHTS for file in where.glob(kind)]:  # of an export before, in other bits
        if not (copied and (transformer / old.name).exists()):
            old.unlink()
    for pickled in inside.rglob("pytorch_model.bin"):  # of a layer after pooling
        save_tensors(read(pickled), pickled.with_name("model.safetensors"))
        pickled.unlink()
    if not copied:
        file = where / (EIGHT_BITS if storage == "int8" else "model.safetensors")
        save_tensors(packed(model.state_dict(), storage), file, metadata={"format": "pt"})
    return str(replace(reference, name=name))


def _left_out(transformer: Path | None, copied: bool, folder: str, names: list[str]) -> set[str]:
    """Names in a folder that are not copied: other formats of weights, and the weights unless they are to be copied.

    Beside a transformer in `transformer` there are layers after pooling, which keep theirs.
    """
    patterns = list(UNUSED)
    if transformer is None or Path(folder) == transformer:
        patterns += ["*.bin", *(() if copied else WEIGHTS)]
    return shutil.ignore_patterns(*patterns)(folder, names)


def _embed_timm(model: Any, reference: Reference, folder: Path, name: str, storage: Storage) -> str:
    """A folder as timm reads it, but for the weights, which may be packed."""
    inside = folder / name
    inside.mkdir(exist_ok=True)
    save_tensors(packed(model.state_dict(), storage), inside / "model.safetensors")
    preprocessing = {key: value for key, value in resolve_model_data_config(model).items() if key in PREPROCESSING}
    preprocessing |= {"first_conv": model.pretrained_cfg.get("first_conv"), "classifier": None, "num_classes": 0}
    architecture = model.pretrained_cfg["architecture"]
    write_json(
        {"architecture": architecture, "num_classes": 0, "pretrained_cfg": preprocessing}, inside / "config.json"
    )
    return str(replace(reference, name=name, file=f"{name}/model.safetensors"))
