"""Qdrant: an edge shard in this process, or a server by its URL."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import in_parts, is_address, needed
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.sparse import SparseRows

Point = tuple[int, list[int], list[float], dict]  # number, terms, weights, payload
_ROWS = 1000  # per request
_VECTOR = "lexicon"
_MEMORY = ":memory:"  # qdrant-client's own engine in Python, for tests


class QdrantEngine(Engine):
    """Exact: sparse vectors are scored in full. Scores are sums in float32.

    Qdrant knows points by 64-bit numbers without a sign. Ids that are numbers are taken modulo 2^64; strings stay in
    the payload, and their points are counted.

    Args:
        location: a folder, or a URL such as http://localhost:6333.
        collection, api_key: of a server.

    Raises:
        IndexingError: the package is not installed.
    """

    name = "qdrant"

    def __init__(self, location: str | Path, collection: str = "lexlip", api_key: str | None = None):
        remote = is_address(str(location)) or str(location) == _MEMORY
        self._points = _Server(str(location), collection, api_key) if remote else _Edge(Path(location))

    def build(self, batches: Iterable[SparseRows]) -> None:
        self._points.clear()
        count = 0
        for part in in_parts(batches, _ROWS):
            points = []
            for id, terms, weights in part:
                number, payload = (count, {"id": id}) if isinstance(id, str) else (id % 2**64, {})
                points.append((number, terms.tolist(), weights.tolist(), payload))
                count += 1
            self._points.put(points)
        self._points.finish()

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        bags = [(list(map(int, terms)), list(map(float, weights))) for terms, weights in queries]
        return [[_hit(point) for point in points if point.score > 0] for points in self._points.find(bags, k)]

    def bytes(self) -> int:
        return self._points.bytes()

    def close(self) -> None:
        self._points.close()


def _hit(point: Any) -> Hit:
    if point.payload:
        return Hit(point.payload["id"], point.score)
    return Hit(point.id - 2**64 if point.id >= 2**63 else point.id, point.score)


class _Edge:
    """Points in a folder: their number, terms, weights and payload."""

    def __init__(self, folder: Path):
        self._edge = needed("qdrant_edge", "qdrant")
        self._folder = folder
        self._shard: Any = self._edge.EdgeShard.load(str(folder)) if self._is_there() else None

    def _is_there(self) -> bool:
        return all((self._folder / name).exists() for name in ("segments", "edge_config.json"))

    def clear(self) -> None:
        self.close()
        if self._is_there():
            shutil.rmtree(self._folder)
        elif self._folder.exists() and any(self._folder.iterdir()):
            raise IndexingError(f"{self._folder} is no shard of Qdrant and holds files: name a new or an empty folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        vectors = {_VECTOR: self._edge.EdgeSparseVectorParams()}
        self._shard = self._edge.EdgeShard.create(str(self._folder), self._edge.EdgeConfig(sparse_vectors=vectors))

    def put(self, points: list[Point]) -> None:
        edge = self._edge
        self._shard.update(
            edge.UpdateOperation.upsert_points(
                [edge.Point(number, {_VECTOR: edge.SparseVector(t, w)}, payload) for number, t, w, payload in points]
            )
        )

    def finish(self) -> None:
        """Make all points durable and indexed."""
        self._shard.optimize()
        self._shard.flush()

    def find(self, queries: list[tuple[list[int], list[float]]], k: int) -> list[list[Any]]:
        """The k best points of each query, with `id`, `score` and `payload`."""
        if self._shard is None:
            raise IndexingError(f"{self._folder} holds no shard of Qdrant")
        edge = self._edge
        return [
            self._shard.query(
                edge.QueryRequest(
                    limit=k, with_payload=True,
                    query=edge.Query.Nearest(edge.SparseVector(terms, weights), using=_VECTOR),
                )
            ) if terms else []
            for terms, weights in queries
        ]  # fmt: skip

    def bytes(self) -> int:
        return disk_bytes(self._folder)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


class _Server:
    """As `_Edge`, points of a collection."""

    def __init__(self, url: str, collection: str, api_key: str | None):
        self._qdrant = needed("qdrant_client", "qdrant")
        self._location, self._collection = url, collection
        where = {"location": url} if url == _MEMORY else {"url": url, "api_key": api_key}
        self._client = self._qdrant.QdrantClient(**where)

    def clear(self) -> None:
        self._client.delete_collection(self._collection)
        vectors = {_VECTOR: self._qdrant.models.SparseVectorParams()}
        self._client.create_collection(self._collection, vectors_config={}, sparse_vectors_config=vectors)

    def put(self, points: list[Point]) -> None:
        models = self._qdrant.models
        self._client.upsert(
            self._collection,
            [
                models.PointStruct(
                    id=number, vector={_VECTOR: models.SparseVector(indices=t, values=w)}, payload=payload
                )
                for number, t, w, payload in points
            ],
        )

    def finish(self) -> None:
        """Its requests are answered when they are durable, and it indexes by itself."""

    def find(self, queries: list[tuple[list[int], list[float]]], k: int) -> list[list[Any]]:
        models = self._qdrant.models
        requests = [
            models.QueryRequest(
                query=models.SparseVector(indices=terms, values=weights), using=_VECTOR, limit=k, with_payload=True
            )
            for terms, weights in queries if terms
        ]  # fmt: skip
        answers = iter(self._client.query_batch_points(self._collection, requests) if requests else ())
        return [next(answers).points if terms else [] for terms, _ in queries]

    def bytes(self) -> int:
        raise IndexingError(f"{self._location}: a server does not tell its size")

    def close(self) -> None:
        self._client.close()
