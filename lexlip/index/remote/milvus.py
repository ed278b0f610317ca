"""Milvus: a server or a cluster by its URI; a file of Milvus Lite, ending in .db, for tries."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import is_address, needed
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.calls import Patience, Trouble
from lexlip.index.remote.collection import MAX_ID, Collection, Document
from lexlip.index.remote.server import Server

_MAX_TEXT = 65_535
_MAX_KEY = 3 * MAX_ID  # as `_key` writes them
# What its messages have; codes differ between versions, and one code stands for many things.
_SIGNS = (
    (Trouble.DENIED, ("auth check failure", "unauthenticated", "permission deny", "permissiondenied", "invalid token")),
    (Trouble.FULL, ("disk quota", "memory quota", "quota exhausted", "no space left", "deny to write")),
    (Trouble.BUSY, ("rate limit", "too many requests", "request is rejected")),
    (Trouble.DOWN, ("fail connecting", "unavailable", "deadline exceeded", "timeout", "timed out", "node offline",
                    "not ready", "closed channel")),
)  # fmt: skip


class MilvusCollection(Collection):
    """See `Collection`. Scores are sums in float32; no posting is dropped, at building or at searching.

    Milvus, and its client, write ids into expressions without minding quotes in them. So a string is kept as it would
    stand in an address, such as 2024/dog%20%26%20cat.jpg.
    """

    rows, max_k = 5000, 16_384

    def __init__(self, server: Server, patience: Patience):
        self._begin(server, patience)
        self._milvus = needed("pymilvus", "milvus")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a trace of every error besides raising it
        self.parallel = is_address(server.uri)
        self._limit = {"timeout": patience.seconds}
        who = server.credentials
        if not self.parallel:
            needed("milvus_lite", "milvus")
            if not server.uri.endswith(".db"):
                raise IndexingError(f"--uri {server.uri}: an address, or a file of Milvus Lite that ends in .db")
        given = {"token": who.api_key, "user": who.user, "password": who.password, "server_pem_path": who.ca_certs}
        given = {name: value for name, value in given.items() if value}
        self._client = self._try(self._milvus.MilvusClient, uri=server.uri, **given, **self._limit)
        self._ready: set[str] = set()

    def exists(self) -> bool:
        return self._has(self._name)

    def create(self, ids: str, shards: int | None) -> None:
        kinds = self._milvus.DataType
        key = {"datatype": kinds.VARCHAR, "max_length": _MAX_KEY} if ids == "string" else {"datatype": kinds.INT64}
        params = {"drop_ratio_build": 0.0, **self.options}
        index = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "params": params}
        parts: dict[str, Any] = {"num_shards": shards} if shards else {}
        self._create(self._name, key, {"datatype": kinds.SPARSE_FLOAT_VECTOR}, index, **parts)

    def drop(self) -> None:
        for name in (self._name, self._notes):
            self._try(self._client.drop_collection, name, **self._limit)
        self._ready.clear()

    def upsert(self, documents: Sequence[Document]) -> None:
        rows = [{"id": _key(id), "vector": dict(zip(terms, weights))} for id, terms, weights in documents]
        self._try(self._client.upsert, self._name, rows, **self._limit)

    def delete(self, ids: Sequence[int | str]) -> None:
        self._ask("delete", self._name, ids=list(map(_key, ids)))

    def finish(self) -> None:
        self._try(self._client.flush, self._name)  # as long as it takes
        self._try(self._loaded, self._name)

    def search(self, bags: Sequence[Bag], k: int) -> list[list[Hit]]:
        queries = [dict(zip(terms.tolist(), weights.tolist())) for terms, weights in bags]
        params = {"metric_type": "IP", "params": {"drop_ratio_search": 0.0}}
        found = self._ask("search", self._name, data=queries, limit=k, anns_field="vector", search_params=params)
        return [[Hit(_id(hit["id"]), float(hit["distance"])) for hit in hits if hit["distance"] > 0] for hits in found]

    def vectors(self, ids: Sequence[int | str]) -> dict[int | str, Bag]:
        rows = self._ask("get", self._name, ids=list(map(_key, ids)), output_fields=["id", "vector"])
        return {_id(row["id"]): _bag(row["vector"]) for row in rows}

    def ids(self) -> Iterator[list[int | str]]:
        pages = self._ask("query_iterator", self._name, batch_size=10_000, output_fields=["id"])
        while page := self._try(pages.next):
            yield [_id(row["id"]) for row in page]
        pages.close()

    def count(self) -> int:
        return self._ask("query", self._name, output_fields=["count(*)"])[0]["count(*)"]

    def note(self, key: str) -> str | None:
        if not self._has(self._notes):
            return None
        rows = self._ask("get", self._notes, ids=[_key(key)], output_fields=["text"])
        return rows[0]["text"] if rows else None

    def write_note(self, key: str, text: str) -> None:
        kinds = self._milvus.DataType
        if not self._has(self._notes):
            # Every collection needs vectors: two zeros.
            index = {"index_type": "FLAT", "metric_type": "IP"}
            kind = {"datatype": kinds.VARCHAR, "max_length": _MAX_KEY}
            vector = {"datatype": kinds.FLOAT_VECTOR, "dim": 2}
            self._create(self._notes, kind, vector, index, {"datatype": kinds.VARCHAR, "max_length": _MAX_TEXT})
        row = {"id": _key(key), "vector": [0.0, 0.0], "text": text}
        self._try(self._client.upsert, self._notes, [row], **self._limit)

    def _create(self, name: str, key: dict, vector: dict, index: dict, text: dict | None = None, **parts: Any) -> None:
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", is_primary=True, **key)
        schema.add_field("vector", **vector)
        if text is not None:
            schema.add_field("text", **text)
        params = self._client.prepare_index_params()
        params.add_index("vector", **index)
        options = {"schema": schema, "index_params": params, "consistency_level": "Strong", **parts, **self._limit}
        self._try(self._client.create_collection, name, **options)

    def _loaded(self, name: str) -> str:
        """The name of a collection that is in the engine's memory, as all but writing to it needs."""
        if name not in self._ready:
            self._client.load_collection(name)
            self._ready.add(name)
        return name

    def _has(self, name: str) -> bool:
        return self._try(self._client.has_collection, name, **self._limit)

    def _ask(self, method: str, name: str, **options: Any) -> Any:
        """The client's answer about a collection, which is loaded for it."""
        return self._try(lambda: getattr(self._client, method)(self._loaded(name), **options, **self._limit))

    @staticmethod
    def diagnose(error: Exception) -> tuple[Trouble, str]:
        words = str(getattr(error, "message", "") or error) or type(error).__name__
        lower = words.lower()
        for trouble, signs in _SIGNS:
            if any(sign in lower for sign in signs):
                return trouble, words
        return Trouble.REFUSED, words


def _key(id: int | str) -> int | str:
    return quote(id, safe="/ ") if isinstance(id, str) else int(id)


def _id(key: int | str) -> int | str:
    return unquote(key) if isinstance(key, str) else key


def _bag(vector: dict[int, float]) -> Bag:
    terms = sorted(vector)
    return np.array(terms, np.uint32), np.array([vector[term] for term in terms], np.float64)
