"""Where documents are searched: an index in a folder, or one in an engine elsewhere, by the same calls."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lexlip.errors import IndexingError
from lexlip.index.index import Index
from lexlip.index.queries import Model
from lexlip.index.store import MANIFEST, Manifest, read_manifest
from lexlip.utils.options import ENGINES

if TYPE_CHECKING:
    from lexlip.index.remote.index import EnginePlace, RemoteIndex

Searchable: TypeAlias = "Index | RemoteIndex"  # a state that can be searched; `Index` says what each call does
Place: TypeAlias = "Folder | EnginePlace"  # where states are published
Where: TypeAlias = "str | Path | Place"


class Folder:
    """An index in a folder."""

    def __init__(self, path: str | Path):
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    def manifest(self) -> Manifest:
        """Of the newest state."""
        return read_manifest(self._path)

    def open(
        self, model: Model | str | Path | None = None, trust_sources: bool = False, *, force: bool = False
    ) -> Searchable:  # fmt: skip
        """The newest state, as `Index.open`."""
        return Index.open(self._path, model, trust_sources, force=force)

    def stamp(self) -> object:
        """Another one for every state, because the manifest is always a new file; None where there is none."""
        try:
            facts = (self._path / MANIFEST).stat()
        except OSError:
            return None
        return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size


def place_at(where: Where) -> Place:
    """A folder's place; a place is one already."""
    return Folder(where) if isinstance(where, (str, Path)) else where


def server_of(options: argparse.Namespace) -> Any:
    """The `lexlip.index.remote.server.Server` of these options.

    Raises:
        IndexingError: what it cannot be made of.
    """
    from lexlip.index.remote.server import NAME, Credentials, Server

    if options.uri is None:
        raise IndexingError(f"--engine {options.engine} needs --uri, its address")
    return Server(options.engine, options.uri, options.collection or NAME, Credentials.found(options.credentials))


def place_of(options: argparse.Namespace) -> Place | None:
    """The place that --index, or --engine and --uri, name; None for neither.

    Raises:
        IndexingError: both, or an option of an engine without one.
    """
    if options.engine is None:
        for name in ("uri", "collection", "credentials"):
            if getattr(options, name) is not None:
                raise IndexingError(f"--{name} is of an engine: give --engine too, one of {', '.join(ENGINES)}")
        return None if options.index is None else Folder(options.index)
    if options.index is not None:
        raise IndexingError("--index or --engine: documents are searched in one of them")
    from lexlip.index.remote.index import EnginePlace

    return EnginePlace(server_of(options))
