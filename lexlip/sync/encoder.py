"""The model of a sync: the one that made the index; loaded when something has to be encoded."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexlip import pretrained
from lexlip.errors import IndexingError
from lexlip.index.lookup import has_table, table_of
from lexlip.index.origin import ModelStamp, rebuilding
from lexlip.index.remembered import remembered
from lexlip.index.store import MANIFEST, read_manifest
from lexlip.models.source import check_source

if TYPE_CHECKING:
    from lexlip.models.lexlip import LexLIP
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
            f"{rebuilding(folder, index, name)}"
        )


class ModelEncoder:
    """What `sync` calls for an encoder, once it has to encode something; the model is loaded then and kept.

    Args:
        folder, index: for messages, and the model that made the index.
        name: of `model_of`.
        rebuild: the index may be of another model.
        options: batch_size, workers, device, trust_sources.
    """

    def __init__(self, folder: Path, index: Path, name: str, rebuild: bool, **options: Any):
        self._folder, self._index, self._name, self._rebuild = folder, index, name, rebuild
        self._options = options

    def check(self) -> None:
        """Refuse a model that did not make the index before it is known whether anything has to be encoded.

        Loads it, unless the index remembers it by this name, or a table told already (`model_of`).

        Raises:
            IndexingError: another one.
        """
        if self._rebuild or not (self._index / MANIFEST).exists():
            return
        stamp, place = read_manifest(self._index).model, check_source("--model ", self._name)
        if stamp is None or (place is not None and has_table(place)):
            return
        # A folder by where it is: the same name may be another folder elsewhere.
        same = os.path.abspath(self._name) == stamp.folder if stamp.folder else self._name == stamp.name
        if not same:
            _ = self._loaded

    def __call__(self, top_k: int) -> Encoder:
        """Encodes to so many of the heaviest terms of each vector; 0: all. The first call loads the model."""
        from lexlip.encode.vectors import CorpusEncoder
        from lexlip.sync.run import Encoder
        from lexlip.utils.devices import usable_device

        stamp, model = self._loaded
        options, device = self._options, usable_device(self._options["device"])
        encoder = CorpusEncoder(model.to(device), top_k or None, options["batch_size"], options["workers"])
        return Encoder(stamp, encoder.windows)

    @cached_property
    def _loaded(self) -> tuple[ModelStamp, LexLIP]:
        from lexlip.models.fingerprint import fingerprint
        from lexlip.models.lexlip import LexLIP

        name = self._name
        model = LexLIP.from_pretrained(name, trust_sources=self._options["trust_sources"])
        folder = os.path.abspath(name) if os.path.isdir(name) else ""
        stamp = ModelStamp(name, folder, fingerprint(model))
        if (self._index / MANIFEST).exists() and not self._rebuild:
            _require_same(self._folder, self._index, name, read_manifest(self._index).model, stamp.fingerprint)
        return stamp, model.eval()
