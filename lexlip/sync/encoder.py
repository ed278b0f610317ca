"""The model of a sync: the one that made the index; loaded when something has to be encoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lexlip import pretrained
from lexlip.errors import IndexingError
from lexlip.index.lookup import has_table, table_of
from lexlip.index.origin import ModelStamp, rebuilding
from lexlip.index.remembered import remembered
from lexlip.index.store import MANIFEST, read_manifest
from lexlip.models.source import check_source

if TYPE_CHECKING:
    from lexlip.models.retrieval import LexiconModel
    from lexlip.sync.run import Encoder

ON_GPU = 64  # images at once
ON_CPU = 4  # glibc gives maps above 32 MB back after each layer; to get them anew took half of the time


def model_of(folder: Path, index: Path, model: str | None, trust_sources: bool, rebuild: bool) -> str:
    """Name or folder of the model that an index is to be encoded with; another than made it is refused.

    Raises:
        IndexingError: another model, by what can be told without loading one; or documents of nobody knows which.
        CheckpointError: no such model.
    """
    there = (index / MANIFEST).exists() and not rebuild
    if not there:
        name = model or pretrained.DEFAULT
        check_source("--model ", name)
        return name
    manifest = read_manifest(index)
    if manifest.model is None and manifest.segments and model is None:
        raise IndexingError(f"{index} does not say which model made it; name it with --model")
    name = model or remembered(index, trust_sources)
    if model is None:
        check_source("--model ", name)
    elif (table := table_of("--model ", model)) is not None:
        _require_same(folder, index, model, manifest.model, table.fingerprint)
    return name


def _require_same(folder: Path, index: Path, name: str, stamp: ModelStamp | None, fingerprint: str) -> None:
    if stamp is not None and stamp.fingerprint != fingerprint:
        raise IndexingError(
            f"{index} was made by {stamp}, not by {name} ({fingerprint[:8]}); leave --model out, or build it anew: "
            f"{rebuilding(folder, index, name)}"
        )


def encoder_of(
    folder: Path, index: Path, name: str, rebuild: bool, *, batch_size: int | None, workers: int, device: str | None,
    trust_sources: bool,
) -> Callable[[int], Encoder]:  # fmt: skip
    """What `sync` calls for an encoder: the first call loads the model, which is kept.

    A model that the index does not remember by this name is loaded at once: refused even where nothing is new.

    Args:
        folder, index: for messages, and the model that made the index.
        name: of `model_of`.
        rebuild: the index may be of another model.
        batch_size: of `CorpusEncoder`; None: what the device is quick with.
        workers: of `CorpusEncoder`.
        device, trust_sources: of the model.

    Raises:
        IndexingError: a model that did not make the index.
    """

    @cache
    def loaded() -> tuple[ModelStamp, LexiconModel, int]:
        from lexlip.models.fingerprint import fingerprint
        from lexlip.models.lexlip import LexLIP
        from lexlip.utils.devices import usable_device

        model = LexLIP.from_pretrained(name, trust_sources=trust_sources)
        stamp = ModelStamp(name, os.path.abspath(name) if os.path.isdir(name) else "", fingerprint(model))
        if (index / MANIFEST).exists() and not rebuild:
            _require_same(folder, index, name, read_manifest(index).model, stamp.fingerprint)
        place = usable_device(device)
        return stamp, model.to(place).eval(), batch_size or (ON_CPU if place.type == "cpu" else ON_GPU)

    @cache
    def load(top_k: int) -> Encoder:
        from lexlip.encode.vectors import CorpusEncoder
        from lexlip.sync.run import Encoder

        stamp, model, at_once = loaded()
        return Encoder(stamp, CorpusEncoder(model, top_k or None, at_once, workers).windows)

    if not rebuild and _is_other(index, name):
        loaded()
    return load


def _is_other(index: Path, name: str) -> bool:
    """Whether an index remembers a model by another name, and no table told already that this is the same."""
    stamp = read_manifest(index).model if (index / MANIFEST).exists() else None
    if stamp is None or (os.path.abspath(name) == stamp.folder if stamp.folder else name == stamp.name):
        return False
    folder = check_source("--model ", name)
    return folder is None or not has_table(folder)
