"""What the adapters share."""

import importlib
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

from lexlip.errors import IndexingError
from lexlip.sparse import SparseRows, kind_of

_ADDRESSES = ("http://", "https://", "tcp://", "unix:")


def needed(module: str, extra: str) -> ModuleType:
    """Import what an extra brings; IndexingError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise IndexingError(
            f"the {extra} engine needs the package {module}: pip install -e '.[{extra}]' ({error})"
        ) from error


def is_address(location: str) -> bool:
    """Whether this is a server, not a path."""
    return location.startswith(_ADDRESSES)


def in_parts(batches: Iterable[SparseRows], documents: int) -> Iterator[list[tuple[int | str, np.ndarray, np.ndarray]]]:
    """(id, terms ascending, float32 weights) of all documents that have terms, at most `documents` at a time.

    Raises:
        IndexingError: an id that is a number among strings, or the other way round.
    """
    kind = None
    part = []
    for rows in batches:
        kind = kind or kind_of(rows.ids)
        if kind_of(rows.ids) != kind:
            raise IndexingError(f"{rows.source}: ids must all be whole numbers or all be strings")
        for id, terms, weights in rows.select(rows.weights > 0).documents():
            if len(terms):
                order = terms.argsort()
                part.append((id, terms[order], weights[order].astype(np.float32)))
            if len(part) == documents:
                yield part
                part = []
    if part:
        yield part
