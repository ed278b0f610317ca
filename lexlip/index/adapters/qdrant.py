"""Qdrant: an edge shard in this process, or a server by its URL."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import in_parts, is_address, needed
from lexlip.index.adapters.elsewhere import CollectionEngine
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.qdrant import id_of
from lexlip.sparse import SparseRows

_ROWS = 1000  # per request
_VECTOR = "lexicon"
_MEMORY = ":memory:"  # qdrant-client's own engine in Python, for tests


def qdrant(location: str | Path, collection: str = "lexlip", api_key: str = "") -> Engine:
    """The engine in a folder, or of a server at a URL such as http://localhost:6333, whose the other arguments are."""
    if is_address(str(location)) or str(location) == _MEMORY:
        return CollectionEngine("qdrant", location, collection, api_key)
    return QdrantEdge(Path(location))


class QdrantEdge(Engine):
    """A shard in a folder. Exact: sparse vectors are scored in full. Scores are sums in float32.

    Qdrant knows points by 64-bit numbers without a sign. Ids that are numbers are taken modulo 2^64; strings stay in
    the payload, and their points are counted.

    Raises:
        IndexingError: the package is not installed.
    """

    name = "qdrant"

    def __init__(self, folder: Path):
        self._edge = needed("qdrant_edge", "qdrant")
        self._folder = folder
        self._shard: Any = self._edge.EdgeShard.load(str(folder)) if self._is_there() else None

    def _is_there(self) -> bool:
        return all((self._folder / name).exists() for name in ("segments", "edge_config.json"))

    def build(self, batches: Iterable[SparseRows]) -> None:
        edge = self._edge
        self.close()
        if self._is_there():
            shutil.rmtree(self._folder)
        elif self._folder.exists() and any(self._folder.iterdir()):
            raise IndexingError(f"{self._folder} is no shard of Qdrant and holds files: name a new or an empty folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        vectors = {_VECTOR: edge.EdgeSparseVectorParams()}
        self._shard = edge.EdgeShard.create(str(self._folder), edge.EdgeConfig(sparse_vectors=vectors))
        count = 0
        for part in in_parts(batches, _ROWS):
            points = []
            for id, terms, weights in part:
                number, payload = (count, {"id": id}) if isinstance(id, str) else (id % 2**64, {})
                vector = edge.SparseVector(terms.tolist(), weights.tolist())
                points.append(edge.Point(number, {_VECTOR: vector}, payload))
                count += 1
            self._shard.update(edge.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self._shard.flush()

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        if self._shard is None:
            raise IndexingError(f"{self._folder} holds no shard of Qdrant")
        return [self._search(list(map(int, terms)), list(map(float, weights)), k) for terms, weights in queries]

    def _search(self, terms: list[int], weights: list[float], k: int) -> list[Hit]:
        if not terms:
            return []
        nearest = self._edge.Query.Nearest(self._edge.SparseVector(terms, weights), using=_VECTOR)
        points = self._shard.query(self._edge.QueryRequest(limit=k, with_payload=True, query=nearest))
        return [Hit(id_of(point), point.score) for point in points if point.score > 0]

    def bytes(self) -> int:
        return disk_bytes(self._folder)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
