"""What the adapters share."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.id_column import kind_of
from lexlip.index.vectors import SparseRows

_ADDRESSES = ("http://", "https://", "tcp://", "unix:")


def needed(module: str, extra: str) -> ModuleType:
    """Import what an extra brings.

    Raises:
        IndexingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise IndexingError(
            f"the {extra} engine needs the package {module}: pip install -e '.[{extra}]' ({error})"
        ) from error


def is_address(place: str) -> bool:
    """Whether a place is a server's, not a path."""
    return place.startswith(_ADDRESSES)


def in_parts(batches: Iterable[SparseRows], documents: int) -> Iterator[list[tuple[int | str, np.ndarray, np.ndarray]]]:
    """Lists of at most so many (id, terms ascending, float32 weights), without documents that have no terms.

    Raises:
        IndexingError: an id that is a number among strings, or the other way round.
    """
    kind = None
    part = []
    for rows in batches:
        kind = kind or kind_of(rows.ids)
        if kind_of(rows.ids) != kind:
            raise IndexingError(f"{rows.source}: ids must all be whole numbers or all be strings")
        names = rows.ids.tolist() if kind == "int" else rows.ids.to_pylist()
        for number, name in enumerate(names):
            row = slice(rows.offsets[number], rows.offsets[number + 1])
            terms, weights = rows.terms[row], rows.weights[row]
            used = weights > 0
            if used.any():
                order = terms[used].argsort()
                part.append((name, terms[used][order], weights[used][order].astype(np.float32)))
            if len(part) == documents:
                yield part
                part = []
    if part:
        yield part
