"""Exact sparse retrieval: lexicon vectors in an inverted index on disk. The format is in docs/INDEX.md.

    from lexlip.index import Index, build, read_shards
    build("images.index", read_shards(["vectors/"]))
    index = Index.open("images.index")
    index.search({2482: 0.7, 3899: 0.4}, k=10)      # term numbers and weights

numba is imported by what encodes or scores postings, not by importing this package or by opening an index.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexlip.errors import DamagedIndex, IndexBusy, IndexingError
    from lexlip.index.index import Hit, Index, Share
    from lexlip.index.shards import read_shards, write_shard
    from lexlip.index.writer import Change, add, build, delete, merge
    from lexlip.sparse import SparseRows

__all__ = [
    "Change", "DamagedIndex", "Hit", "Index", "IndexBusy", "IndexingError", "Share", "SparseRows",
    "add", "build", "delete", "merge", "read_shards", "write_shard",
]  # fmt: skip

_HOMES = {  # loaded when asked for: a search needs no writer
    **dict.fromkeys(("DamagedIndex", "IndexBusy", "IndexingError"), "lexlip.errors"),
    **dict.fromkeys(("Hit", "Index", "Share"), "lexlip.index.index"),
    **dict.fromkeys(("read_shards", "write_shard"), "lexlip.index.shards"),
    **dict.fromkeys(("Change", "add", "build", "delete", "merge"), "lexlip.index.writer"),
    "SparseRows": "lexlip.sparse",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
