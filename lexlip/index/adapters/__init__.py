"""Other engines behind the interface of `lexlip.index.engine`: the same vectors, the same queries.

| name | location | package |
| --- | --- | --- |
| lexlip | a folder | |
| milvus | a file (Milvus Lite), or the URI of a server or a cluster | pymilvus, milvus-lite |
| qdrant | a folder (Qdrant Edge, in this process), or the URL of a server | qdrant-edge-py, qdrant-client |
| seismic | a folder; approximate | pyseismic-lsr |

Each is an extra of the same name: pip install -e '.[milvus]'. Only what is used is imported.
"""

import importlib
import importlib.util
from typing import Any

from lexlip.errors import IndexingError
from lexlip.index.engine import Engine

# By name: module, what makes the engine, what must be importable.
_ENGINES = {
    "lexlip": ("lexlip.index.engine", "LexLIPEngine", ()),
    "milvus": ("lexlip.index.adapters.elsewhere", "milvus", ("pymilvus", "milvus_lite")),
    "qdrant": ("lexlip.index.adapters.qdrant", "qdrant", ("qdrant_edge",)),
    "seismic": ("lexlip.index.adapters.seismic", "SeismicEngine", ("seismic",)),
}


def installed() -> list[str]:
    """Names of the engines whose packages are installed."""
    return [name for name, (_, _, needs) in _ENGINES.items() if all(map(importlib.util.find_spec, needs))]


def open_engine(name: str, location: str, **options: Any) -> Engine:
    """An engine by its name, at its location, both as above, with the options of its class.

    Raises:
        IndexingError: no such engine, or its package is not installed.
    """
    if name not in _ENGINES:
        raise IndexingError(f"no engine {name!r}: one of {', '.join(_ENGINES)}")
    module, kind, _ = _ENGINES[name]
    return getattr(importlib.import_module(module), kind)(location, **options)
