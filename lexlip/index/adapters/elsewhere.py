"""Milvus and Qdrant's server by the calls that `lexlip index push` uses: the same code for documents and searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.adapters.common import in_parts
from lexlip.index.engine import Engine, disk_bytes
from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.calls import PUSHING
from lexlip.index.remote.collection import Document
from lexlip.index.remote.server import Credentials, Server
from lexlip.sparse import SparseRows


class CollectionEngine(Engine):
    """Exact: an inverted index without dropped postings. Scores are sums in float32.

    Args:
        name: milvus or qdrant.
        location: a URI such as http://localhost:19530; of milvus also a path that ends in .db.
        collection: its name there.
        token: an API key, or "user:password" of milvus.
        options: of milvus, more parameters of the index, such as {"inverted_index_algo": "DAAT_MAXSCORE"} on a server.

    Raises:
        IndexingError: the package is not installed, or an address of another form.
        EngineError: it does not answer.
    """

    def __init__(
        self, name: str, location: str | Path, collection: str = "lexlip", token: str = "", options: dict | None = None
    ):
        self.name, self._location = name, str(location)
        server = Server(name, self._location, collection, Credentials(api_key=token))
        self._collection = server.collection(PUSHING)
        self._collection.options = options or {}
        self._exists = False

    def build(self, batches: Iterable[SparseRows]) -> None:
        target = self._collection
        if target.exists():
            target.drop()
        self._exists = False
        for part in in_parts(batches, target.rows):
            if not self._exists:
                target.create("string" if isinstance(part[0][0], str) else "int", None)
            self._exists = True
            target.upsert([Document(id, terms.tolist(), weights.tolist()) for id, terms, weights in part])
        if self._exists:
            target.finish()

    def search_batch(self, queries: Sequence[Bag], k: int) -> list[list[Hit]]:
        if not 1 <= k <= self._collection.max_k:
            raise IndexingError(f"k={k}: {self.name.capitalize()} finds 1 to {self._collection.max_k:,} documents")
        self._exists = self._exists or self._collection.exists()
        bags = [(np.asarray(t, np.uint32), np.asarray(w, np.float64)) for t, w in queries if self._exists and len(t)]
        answers = iter(self._collection.search(bags, k) if bags else ())
        return [next(answers) if bags and len(terms) else [] for terms, _ in queries]

    def bytes(self) -> int:
        if not Path(self._location).exists():
            raise IndexingError(f"{self._location}: a server does not tell its size")
        return disk_bytes(Path(self._location))

    def close(self) -> None:
        self._collection.close()


milvus = partial(CollectionEngine, "milvus")
