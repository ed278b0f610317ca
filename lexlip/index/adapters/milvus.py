"""Milvus: a file of Milvus Lite in this process, or a server or a cluster by its URI, by the same code."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import in_parts, is_address, needed
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.sparse import SparseRows

_ROWS = 10_000  # per insert; a request may have 64 MB
_MAX_ID = 512  # bytes of a string id
_MAX_K = 16_384


class MilvusEngine(Engine):
    """Exact: an inverted index without dropped postings. Scores are sums in float32.

    Args:
        location: a path that ends in .db, or a URI such as http://localhost:19530.
        collection: its name there.
        token: "user:password" or an API key.
        options: more parameters of the index, such as {"inverted_index_algo": "DAAT_MAXSCORE"} on a server.

    Raises:
        IndexingError: pymilvus is not installed.
    """

    name = "milvus"

    def __init__(self, location: str | Path, collection: str = "lexlip", token: str = "", options: dict | None = None):
        self._milvus = needed("pymilvus", "milvus")
        self._location, self._collection, self._options = str(location), collection, options or {}
        if not is_address(self._location):
            needed("milvus_lite", "milvus")
            if not self._location.endswith(".db"):
                raise IndexingError(f"{location}: Milvus Lite takes a file that ends in .db")
        self._client = self._milvus.MilvusClient(uri=self._location, token=token)

    def build(self, batches: Iterable[SparseRows]) -> None:
        client = self._client
        if client.has_collection(self._collection):
            client.drop_collection(self._collection)
        for part in in_parts(batches, _ROWS):
            if not client.has_collection(self._collection):
                self._create(strings=isinstance(part[0][0], str))
            client.insert(
                self._collection,
                [{"id": id, "vector": dict(zip(terms.tolist(), weights.tolist()))} for id, terms, weights in part],
            )
        if client.has_collection(self._collection):
            client.flush(self._collection)
            client.load_collection(self._collection)

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        if not 1 <= k <= _MAX_K:
            raise IndexingError(f"k={k}: Milvus finds 1 to {_MAX_K:,} documents")
        bags = [dict(zip(map(int, terms), map(float, weights))) for terms, weights in queries]
        data = [bag for bag in bags if bag]  # it refuses empty vectors
        if not data or not self._client.has_collection(self._collection):
            return [[] for _ in bags]
        params = {"metric_type": "IP", "params": {"drop_ratio_search": 0.0}}
        answers = iter(self._client.search(self._collection, data, limit=k, anns_field="vector", search_params=params))
        return [
            [Hit(hit["id"], float(hit["distance"])) for hit in next(answers) if hit["distance"] > 0] if bag else []
            for bag in bags
        ]

    def bytes(self) -> int:
        if is_address(self._location):
            raise IndexingError(f"{self._location}: a server does not tell its size")
        return disk_bytes(Path(self._location))

    def close(self) -> None:
        """Let the file go; Milvus Lite holds it alone."""
        self._client.close()

    def _create(self, strings: bool) -> None:
        client, kinds = self._client, self._milvus.DataType
        schema = client.create_schema(auto_id=False)
        id_type = {"datatype": kinds.VARCHAR, "max_length": _MAX_ID} if strings else {"datatype": kinds.INT64}
        schema.add_field("id", is_primary=True, **id_type)
        schema.add_field("vector", kinds.SPARSE_FLOAT_VECTOR)
        index = client.prepare_index_params()
        index.add_index(
            "vector", index_type="SPARSE_INVERTED_INDEX", metric_type="IP",
            params={"drop_ratio_build": 0.0, **self._options},
        )  # fmt: skip
        client.create_collection(self._collection, schema=schema, index_params=index, consistency_level="Strong")
