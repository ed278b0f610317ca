"""Qdrant: a server by its URL; a folder, or ":memory:", for tries: the client's own engine in Python."""

from __future__ import annotations

import uuid
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lexlip.index.adapters.common import is_address, needed
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.calls import Patience, Trouble, of_status
from lexlip.index.remote.collection import Collection, Document
from lexlip.index.remote.server import Server

_VECTOR = "lexicon"
_KEYS = uuid.UUID("6c65786c-6970-4000-8000-000000000000")  # of the numbers that stand for strings


class QdrantCollection(Collection):
    """See `Collection`. Scores are sums in float32 over all terms.

    Points have numbers of 64 bits without a sign, or UUIDs. Ids that are numbers are taken modulo 2^64; for a string
    stands a UUID made of it, and the string itself is in the payload.
    """

    rows, max_k = 1000, 1_000_000

    def __init__(self, server: Server, patience: Patience):
        self._begin(server, patience)
        self._qdrant = needed("qdrant_client", "qdrant")
        self.parallel = is_address(server.uri)
        if self.parallel:
            who = server.credentials
            options: dict[str, Any] = {
                "url": server.uri, "api_key": who.api_key or None, "timeout": max(1, round(patience.seconds)),
                "check_compatibility": False,
            }  # fmt: skip
            if who.user:  # of a proxy in front of the server, which itself knows API keys alone
                pair = b64encode(f"{who.user}:{who.password}".encode()).decode()
                options["headers"] = {"authorization": f"Basic {pair}"}
            if who.ca_certs:
                options["verify"] = who.ca_certs
        else:
            options = {"location" if server.uri == ":memory:" else "path": server.uri}
        self._client = self._try(self._qdrant.QdrantClient, **options)

    def exists(self) -> bool:
        return self._try(self._client.collection_exists, self._name)

    def create(self, ids: str, shards: int | None) -> None:
        # The default keeps an index of the vectors in memory; their copies on the disk are for `vectors`.
        vectors = {_VECTOR: self._qdrant.models.SparseVectorParams()}
        options = {"vectors_config": {}, "sparse_vectors_config": vectors, "shard_number": shards}
        self._try(self._client.create_collection, self._name, **options)

    def drop(self) -> None:
        for name in (self._name, self._notes):
            self._try(self._client.delete_collection, name)

    def upsert(self, documents: Sequence[Document]) -> None:
        self._try(self._client.upsert, self._name, list(map(self._point, documents)), wait=True)

    def delete(self, ids: Sequence[int | str]) -> None:
        chosen = self._qdrant.models.PointIdsList(points=list(map(_number, ids)))
        self._try(self._client.delete, self._name, chosen, wait=True)

    def finish(self) -> None:
        """Requests are answered when they are durable, and points are found before they are indexed."""

    def search(self, bags: Sequence[Bag], k: int) -> list[list[Hit]]:
        models = self._qdrant.models
        vectors = [models.SparseVector(indices=terms.tolist(), values=weights.tolist()) for terms, weights in bags]
        requests = [models.QueryRequest(query=vector, using=_VECTOR, limit=k, with_payload=True) for vector in vectors]
        answers = self._try(self._client.query_batch_points, self._name, requests)
        return [[Hit(id_of(point), float(point.score)) for point in answer.points] for answer in answers]

    def vectors(self, ids: Sequence[int | str]) -> dict[int | str, Bag]:
        options = {"with_payload": True, "with_vectors": [_VECTOR]}
        found = self._try(self._client.retrieve, self._name, list(map(_number, ids)), **options)
        return {id_of(point): _bag(point.vector[_VECTOR]) for point in found}

    def ids(self) -> Iterator[list[int | str]]:
        after = None
        while True:
            options = {"limit": self.rows * 10, "offset": after, "with_payload": True, "with_vectors": False}
            points, after = self._try(self._client.scroll, self._name, **options)
            yield [id_of(point) for point in points]
            if after is None:
                return

    def count(self) -> int:
        return self._try(self._client.count, self._name, exact=True).count

    def note(self, key: str) -> str | None:
        if not self._try(self._client.collection_exists, self._notes):
            return None
        found = self._try(self._client.retrieve, self._notes, [_number(key)], with_payload=True)
        return found[0].payload["text"] if found else None

    def write_note(self, key: str, text: str) -> None:
        if not self._try(self._client.collection_exists, self._notes):
            self._try(self._client.create_collection, self._notes, vectors_config={})
        point = self._qdrant.models.PointStruct(id=_number(key), vector={}, payload={"key": key, "text": text})
        self._try(self._client.upsert, self._notes, [point], wait=True)

    def _point(self, document: Document) -> Any:
        models = self._qdrant.models
        vector = models.SparseVector(indices=document.terms, values=document.weights)
        payload = {"id": document.id} if isinstance(document.id, str) else {}
        return models.PointStruct(id=_number(document.id), vector={_VECTOR: vector}, payload=payload)

    @staticmethod
    def diagnose(error: Exception) -> tuple[Trouble, str]:
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        if isinstance(error, UnexpectedResponse):
            words = f"{error.status_code} {error.content.decode('utf-8', 'replace')}"
            return of_status(error.status_code or 0, words), words
        if isinstance(error, ResourceExhaustedResponse):
            return Trouble.BUSY, str(error)
        if isinstance(error, ResponseHandlingException):
            return Trouble.DOWN, f"{type(error.source).__name__}: {error.source}"
        return Trouble.REFUSED, str(error) or type(error).__name__


def _number(id: int | str) -> int | str:
    return str(uuid.uuid5(_KEYS, id)) if isinstance(id, str) else int(id) % 2**64


def id_of(point: Any) -> int | str:
    """Of a point, as it was before the engine numbered it."""
    if point.payload:
        return point.payload["id"]
    return point.id - 2**64 if point.id >= 2**63 else point.id


def _bag(vector: Any) -> Bag:
    terms, weights = np.array(vector.indices, np.uint32), np.array(vector.values, np.float64)
    order = terms.argsort()
    return terms[order], weights[order]
