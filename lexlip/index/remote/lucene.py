"""OpenSearch and Elasticsearch: the same requests by either's client, but for the field and the query's clause.

Lucene keeps 9 significant bits of a feature, our weights have 11. As in `lexlip index export`, a weight is two features
and the sum is exact (`lexlip.index.export.lucene`). Beside them lies the document packed, six bytes a term, which
`vectors` reads: explanations then have the stored weights, whatever the engine made of its own.
"""

from __future__ import annotations

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from lexlip.errors import EngineError, IndexingError
from lexlip.index.adapters.common import needed
from lexlip.index.export import lucene
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.calls import Patience, Trouble, of_status
from lexlip.index.remote.collection import Collection, Document
from lexlip.index.remote.server import Credentials, Server

_PACKED = "packed"
_CONNECTIONS = 64  # kept open: more than there are workers, or threads that search
_SCROLL = "5m"  # that a page of ids is waited for
_JSON, _LINES = "application/json", "application/x-ndjson"


class LuceneCollection(Collection):
    """See `Collection`. Scores are sums in float32 over all terms, two features each."""

    rows, max_k = 500, 10_000
    parallel = True
    engine: str

    def __init__(self, server: Server, patience: Patience):
        parts = urlsplit(server.uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise IndexingError(f"--uri {server.uri}: an address such as https://search.example.org:9200")
        port = parts.port or (443 if parts.scheme == "https" else 9200)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        address = f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"
        self._begin(server, patience)
        self._ids = ""
        for name in ("opensearch", "elastic_transport", "elasticsearch"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log failures besides raising them
        self._client = self._connect(address, server.credentials, patience.seconds)

    def _connect(self, address: str, who: Credentials, seconds: float) -> Any:
        """The client, which tries nothing twice."""
        raise NotImplementedError

    def _request(self, method: str, path: str, params: dict | None, body: Any, kind: str) -> Any:
        """The body of the answer, whatever of 2xx it is."""
        raise NotImplementedError

    def exists(self) -> bool:
        return self._mapping() is not None

    def create(self, ids: str, shards: int | None) -> None:
        # Nothing is searched before `finish`, so nothing is to be found.
        settings = {"refresh_interval": "-1", **({"number_of_shards": shards} if shards else {})}
        properties = {lucene.FIELD: lucene.FIELDS[self.engine], _PACKED: {"type": "binary"}}
        mappings = {
            "dynamic": "strict", "_meta": {"ids": ids}, "_source": {"excludes": [lucene.FIELD]},
            "properties": properties,
        }  # fmt: skip
        self._call("PUT", f"/{self._name}", {"settings": {"index": settings}, "mappings": mappings})

    def drop(self) -> None:
        for name in (self._name, self._notes):
            self._call("DELETE", f"/{name}", missing=True)
        self._ids = ""

    def upsert(self, documents: Sequence[Document]) -> None:
        self._bulk(self._lines(documents))

    def delete(self, ids: Sequence[int | str]) -> None:
        self._bulk(json.dumps({"delete": {"_id": str(id)}}) for id in ids)

    def finish(self) -> None:
        self._call("PUT", f"/{self._name}/_settings", {"index": {"refresh_interval": None}})  # its default
        self._call("POST", f"/{self._name}/_refresh")

    def search(self, bags: Sequence[Bag], k: int) -> list[list[Hit]]:
        return [self._search(bag, k) for bag in bags]

    def _search(self, bag: Bag, k: int) -> list[Hit]:
        # Clauses weigh up to 64: all of a query's weights are divided by the same power of two, and scores multiplied.
        heaviest = float(bag[1].max())
        scale = 2.0 ** max(0, np.ceil(np.log2(heaviest / lucene.MAX_WEIGHT)))
        body = lucene.query(self.engine, bag[0].tolist(), (bag[1] / scale).tolist(), k, rounded=False)
        try:
            # Without this, a part of the index that does not answer is left out in silence.
            answer = self._call("POST", f"/{self._name}/_search", body, {"allow_partial_search_results": "false"})
        except EngineError as error:
            if "clause" in str(error).lower():
                raise IndexingError(f"a query of {len(bag[0]):,} terms: keep the heaviest ({error})") from error
            raise
        return [Hit(self._id(hit["_id"]), hit["_score"] * scale) for hit in answer["hits"]["hits"]]

    def vectors(self, ids: Sequence[int | str]) -> dict[int | str, Bag]:
        if not ids:
            return {}
        answer = self._call("POST", f"/{self._name}/_mget", {"ids": list(map(str, ids))}, {"_source": _PACKED})
        return {self._id(doc["_id"]): _unpacked(doc["_source"][_PACKED]) for doc in answer["docs"] if doc.get("found")}

    def ids(self) -> Iterator[list[int | str]]:
        query = {"size": self.max_k, "_source": False, "sort": ["_doc"], "query": {"match_all": {}}}
        page = self._call("POST", f"/{self._name}/_search", query, {"scroll": _SCROLL})
        while hits := page["hits"]["hits"]:
            yield [self._id(hit["_id"]) for hit in hits]
            page = self._call("POST", "/_search/scroll", {"scroll": _SCROLL, "scroll_id": page["_scroll_id"]})
        self._call("DELETE", "/_search/scroll", {"scroll_id": [page["_scroll_id"]]}, missing=True)

    def count(self) -> int:
        return self._call("POST", f"/{self._name}/_count", {"query": {"match_all": {}}})["count"]

    def note(self, key: str) -> str | None:
        found = self._call("GET", f"/{self._notes}/_doc/{quote(key, safe='')}", missing=True)
        return found["_source"]["text"] if found and found.get("found") else None

    def write_note(self, key: str, text: str) -> None:
        if self._call("GET", f"/{self._notes}/_mapping", missing=True) is None:
            kept = {"type": "keyword", "index": False, "doc_values": False}
            mappings = {"dynamic": "strict", "properties": {"text": kept}}
            settings = {"index": {"number_of_shards": 1}}
            self._call("PUT", f"/{self._notes}", {"settings": settings, "mappings": mappings})
        self._call("PUT", f"/{self._notes}/_doc/{quote(key, safe='')}", {"text": text})

    def _mapping(self) -> dict | None:
        answer = self._call("GET", f"/{self._name}/_mapping", missing=True)
        return next(iter(answer.values()))["mappings"] if answer else None

    def _id(self, text: str) -> int | str:
        if not self._ids:
            self._ids = ((self._mapping() or {}).get("_meta") or {}).get("ids", "string")
        return int(text) if self._ids == "int" else text

    def _lines(self, documents: Sequence[Document]) -> Iterator[str]:
        terms = np.array([term for document in documents for term in document.terms], "<u4")
        weights = np.array([weight for document in documents for weight in document.weights], np.float32)
        values, halves = np.stack(lucene.split(weights), axis=1).tolist(), weights.astype("<f2")
        first = 0
        for document in documents:
            mine = slice(first, first + len(document.terms))
            first = mine.stop
            packed = b64encode(terms[mine].tobytes() + halves[mine].tobytes()).decode()
            yield json.dumps({"index": {"_id": str(document.id)}})
            yield json.dumps({lucene.FIELD: lucene.features(document.terms, values[mine]), _PACKED: packed})

    def _bulk(self, lines: Iterable[str]) -> None:
        body = "".join(f"{line}\n" for line in lines)

        def send() -> None:
            answer = self._request("POST", f"/{self._name}/_bulk", None, body, _LINES)
            if answer["errors"]:  # with status 200, and each document's own inside
                for item in answer["items"]:
                    (done,) = item.values()
                    if "error" in done:
                        raise _Refused(done["status"], f"document {done.get('_id')}: {_reason(done)}")

        if body:
            self._try(send)

    def _call(
        self, method: str, path: str, body: Any = None, params: dict | None = None, missing: bool = False
    ) -> Any:  # fmt: skip
        """The body of an answer; None for 404 where `missing` is no error."""

        def send() -> Any:
            try:
                return self._request(method, path, params, body, _JSON)
            except Exception as error:
                if missing and getattr(error, "status_code", None) == 404:
                    return None
                raise

        return self._try(send)

    @staticmethod
    def diagnose(error: Exception) -> tuple[Trouble, str]:
        """By names, because both clients have classes of these and either may be absent."""
        status, name = getattr(error, "status_code", None), type(error).__name__
        if isinstance(status, int):
            body = getattr(error, "body", None) or getattr(error, "info", None)
            words = _reason(body) if body else str(error)
            return of_status(status, words), f"{status} {words}"
        if name in ("ConnectionError", "ConnectionTimeout"):
            return Trouble.DOWN, str(error)
        return Trouble.REFUSED, f"{name}: {error}"


class OpenSearchCollection(LuceneCollection):
    """By opensearch-py."""

    engine = "opensearch"

    def _connect(self, address: str, who: Credentials, seconds: float) -> Any:
        if who.api_key:
            raise IndexingError("OpenSearch takes a user and a password, no API key")
        options: dict[str, Any] = {"http_auth": (who.user, who.password)} if who.user else {}
        if who.ca_certs:
            options["ca_certs"] = who.ca_certs
        client = needed("opensearchpy", "opensearch").OpenSearch
        return client(hosts=[address], timeout=seconds, max_retries=0, pool_maxsize=_CONNECTIONS, **options)

    def _request(self, method: str, path: str, params: dict | None, body: Any, kind: str) -> Any:
        headers = {"content-type": kind}
        return self._client.transport.perform_request(method, path, params=params, body=body, headers=headers)


class ElasticsearchCollection(LuceneCollection):
    """By elasticsearch-py."""

    engine = "elasticsearch"

    def _connect(self, address: str, who: Credentials, seconds: float) -> Any:
        options: dict[str, Any] = {"basic_auth": (who.user, who.password)} if who.user else {}
        if who.api_key:
            options["api_key"] = who.api_key
        if who.ca_certs:
            options["ca_certs"] = who.ca_certs
        client = needed("elasticsearch", "elasticsearch").Elasticsearch
        options["connections_per_node"] = _CONNECTIONS
        return client(hosts=[address], request_timeout=seconds, max_retries=0, **options)

    def _request(self, method: str, path: str, params: dict | None, body: Any, kind: str) -> Any:
        headers = {"accept": _JSON, **({"content-type": kind} if body is not None else {})}
        return self._client.perform_request(method, path, params=params, body=body, headers=headers).body


class _Refused(Exception):
    """A document of a bulk request that was not taken."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status_code = status


def _unpacked(text: str) -> Bag:
    """Of (T,) uint32 terms, then (T,) float16 weights."""
    data = b64decode(text)
    count = len(data) // 6
    return np.frombuffer(data, "<u4", count), np.frombuffer(data, "<f2", count, 4 * count).astype(np.float64)


def _reason(body: Any) -> str:
    """What an answer says went wrong."""
    error = body.get("error") if isinstance(body, dict) else None
    return f"{error.get('type')}: {error.get('reason')}" if isinstance(error, dict) else str(error or body)
