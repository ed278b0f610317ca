"""The model of a sync: the one that made the index; loaded when something has to be encoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lexlip import pretrained
from lexlip.errors import IndexingError
from lexlip.index.lookup import table_of
from lexlip.index.origin import ModelStamp
from lexlip.index.remembered import remembered
from lexlip.index.store import MANIFEST, read_manifest
from lexlip.models.source import check_source

if TYPE_CHECKING:
    from lexlip.sync.run import Encoder


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
            f"lexlip sync {folder} --index {index} --model {name} --rebuild"
        )


def encoder_of(
    folder: Path, index: Path, name: str, rebuild: bool, *, batch_size: int, workers: int, device: str | None,
    trust_sources: bool,
) -> Callable[[int], Encoder]:  # fmt: skip
    """What `sync` calls for an encoder: the first call loads the model, which is kept.

    Args:
        folder, index: for messages, and the model that made the index.
        name: of `model_of`.
        rebuild: the index may be of another model.
        batch_size, workers: of `CorpusEncoder`.
        device, trust_sources: of the model.
    """

    @cache
    def load(top_k: int) -> Encoder:
        from lexlip.encode.vectors import CorpusEncoder
        from lexlip.models.fingerprint import fingerprint
        from lexlip.models.lexlip import LexLIP
        from lexlip.sync.run import Encoder
        from lexlip.utils.devices import usable_device

        model = LexLIP.from_pretrained(name, trust_sources=trust_sources)
        stamp = ModelStamp(name, os.path.abspath(name) if os.path.isdir(name) else "", fingerprint(model))
        if (index / MANIFEST).exists() and not rebuild:
            _require_same(folder, index, name, read_manifest(index).model, stamp.fingerprint)
        model = model.to(usable_device(device)).eval()
        return Encoder(stamp, CorpusEncoder(model, top_k or None, batch_size, workers).windows)

    return load
