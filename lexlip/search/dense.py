"""Dense vectors of the same documents beside an index: fusion of both rankings, and dense order of the best few.

    folder/vectors.npy      (N, D), or any .faiss file instead
    folder/ids.txt          N ids, one a line
    folder/dense.json       {"model": "..."}: what encodes texts and images into this space; may be missing

Vectors are compared by their dot product, and read from the disk as they are needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index import Hit, Index
from lexlip.index.conditions import Conditions
from lexlip.index.places import Searchable
from lexlip.search.fusion import fuse
from lexlip.sparse import take_ids
from lexlip.utils.files import write_json, write_whole

DEPTH = 200  # of each ranking


def write_dense(folder: str | Path, ids: Sequence[int | str], vectors: np.ndarray, model: str = "") -> None:
    """Write vectors as `DenseVectors` reads them.

    Raises:
        IndexingError: another number of ids, or an id of several lines.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise IndexingError(f"{len(ids)} ids for vectors of shape {vectors.shape}; there must be (N, D) for N ids")
    if any("\n" in str(id) for id in ids):
        raise IndexingError("an id with a line break cannot be written to ids.txt")
    place = Path(folder)
    write_whole(place / "vectors.npy", lambda file: np.save(file, vectors))
    write_whole(place / "ids.txt", lambda file: file.write("".join(f"{id}\n" for id in ids).encode()))
    if model:
        write_json({"model": model}, place / "dense.json")


class DenseVectors:
    """A folder of them.

    Args:
        folder: see above.
        ids: "int" or "string", as the index has them.

    Raises:
        IndexingError: files that are missing or do not fit.
    """

    def __init__(self, folder: str | Path, ids: str = "string"):
        self.folder = Path(folder)
        try:
            lines = (self.folder / "ids.txt").read_text(encoding="utf-8").split("\n")
            names = lines[:-1] if lines[-1] == "" else lines
            self.ids: list[Any] = [int(name) for name in names] if ids == "int" else names
            self._vectors, self.width = self._read()
        except (OSError, ValueError) as error:
            raise IndexingError(f"{folder} holds no dense vectors that can be read: {error}") from error
        if len(self._vectors) != len(self.ids):
            raise IndexingError(f"{folder}: {len(self._vectors):,} vectors, but ids.txt has {len(self.ids):,} lines")
        self._rows = {id: row for row, id in enumerate(self.ids)}
        if len(self._rows) < len(self.ids):
            raise IndexingError(f"{folder}/ids.txt holds an id twice")

    def _read(self) -> tuple[Any, int]:
        files = sorted(self.folder.glob("*.faiss"))
        if not files:
            vectors = np.load(self.folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
            if vectors.ndim != 2 or vectors.dtype.kind != "f":
                raise ValueError(f"vectors.npy is {vectors.dtype} of shape {vectors.shape}, not numbers (N, D)")
            return vectors, vectors.shape[1]
        try:
            import faiss
        except ImportError as error:
            raise IndexingError(f"{files[0]} needs faiss: pip install faiss-cpu") from error
        try:
            found = faiss.read_index(str(files[0]))
            return found.reconstruct_n(0, found.ntotal), found.d
        except RuntimeError as error:
            raise ValueError(f"{files[0].name}: {str(error).splitlines()[0]}") from error

    def scores(self, query: np.ndarray, ids: Sequence[Any]) -> list[float | None]:
        """Of some ids; None for one without a vector."""
        rows = [self._rows.get(id) for id in ids]
        known = [row for row in rows if row is not None]
        values = iter((np.asarray(self._vectors[known], np.float32) @ self._checked(query)).tolist() if known else ())
        return [None if row is None else next(values) for row in rows]

    def search(
        self, query: np.ndarray, k: int, allowed: Callable[[Any], bool] = lambda id: True,
        penalties: Mapping[Any, float] = {},
    ) -> list[Hit]:  # fmt: skip
        """The k best of those that are allowed, best first, after what is taken off the scores of some."""
        scores = np.concatenate(
            [np.zeros(0), *(np.asarray(self._vectors[first : first + 65536], np.float32) @ self._checked(query)
                            for first in range(0, len(self.ids), 65536))]
        )  # fmt: skip
        for id, penalty in penalties.items():
            if id in self._rows:
                scores[self._rows[id]] -= penalty
        best: list[Hit] = []
        for row in np.argsort(-scores, kind="stable").tolist():
            if len(best) == k:
                break
            if allowed(self.ids[row]):
                best.append(Hit(self.ids[row], float(scores[row])))
        return best

    def _checked(self, query: np.ndarray) -> np.ndarray:
        query = np.asarray(query, np.float32).reshape(-1)
        if len(query) != self.width:
            raise IndexingError(f"{self.folder}: its vectors are of {self.width} numbers, the query's of {len(query)}")
        return query

    def encode(self, text: str | None, image: Path | None) -> np.ndarray:
        """A query by the model that dense.json names.

        Raises:
            IndexingError: it names none.
        """
        try:
            name = json.loads((self.folder / "dense.json").read_text(encoding="utf-8"))["model"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise IndexingError(f"{self.folder}/dense.json names no model; give --dense-query FILE.npy") from error
        from lexlip.models.auto import load_folder_of_any_head

        model = load_folder_of_any_head(name)
        vector = model.encode_text([text or ""]) if image is None else model.encode_image([image])
        return vector[0].cpu().numpy()


def rerank(
    hits: Sequence[Hit], dense: DenseVectors, query: np.ndarray, penalties: Mapping[Any, float] = {}
) -> list[Hit]:
    """Hits in the order of their dense scores less penalties; those without a vector after them, as they were."""
    scores = dense.scores(query, [hit.id for hit in hits])
    known = [Hit(hit.id, score - penalties.get(hit.id, 0.0)) for hit, score in zip(hits, scores) if score is not None]
    rest = [hit for hit, score in zip(hits, scores) if score is None]
    return sorted(known, key=lambda hit: -hit.score) + rest


def hybrid(
    index: Searchable, query: Any, dense: DenseVectors, vector: np.ndarray, k: int = 10, fusion: str = "rrf", *,
    depth: int = DEPTH, params: Mapping[str, Any] | None = None, drop: float = 0.0,
    ids: Callable[[Any], bool] | None = None, **conditions: Any,
) -> list[Hit]:  # fmt: skip
    """Search both ways, `depth` documents deep, and fuse; or search the index and rerank.

    Args:
        query: of the index.
        vector: (D,) of the dense vectors.
        fusion: "rrf", "wsum" or "rerank".
        params: of `fuse`.
        drop: of `Index.search`.
        ids, conditions: of `Index.search`; the dense documents fulfil them too, and are in the index. Penalties are
            taken off the scores of both.

    Raises:
        IndexingError: no such fusion, vectors of another width, or what an engine elsewhere cannot do.
    """
    if fusion not in ("rrf", "wsum", "rerank"):
        raise IndexingError(f"fusion={fusion!r}: rrf, wsum or rerank")
    hits = index.search(query, max(k, depth), ids=ids, drop=drop, **conditions)
    fulfilled = Conditions.of_words(index.model, ids, **conditions)
    penalties = _penalties(index, fulfilled)
    if fusion == "rerank":
        return rerank(hits, dense, vector, penalties)[:k]
    found = dense.search(vector, max(k, depth), _allowed(index, fulfilled).__contains__, penalties)
    return fuse([hits, found], method=fusion, params=params)[:k]


def _penalties(index: Searchable, conditions: Conditions) -> dict[Any, float]:
    """What is taken off the scores of which documents."""
    if not conditions.penalties:
        return {}
    if not isinstance(index, Index):
        raise IndexingError("--dense with --engine takes no penalties (dog^-1), which need every document's weight")
    found: dict[Any, float] = {}
    for segment in index.segments:
        penalties = conditions.penalty(segment, np.arange(segment.documents))
        numbers = np.flatnonzero((penalties > 0) & segment.alive())
        found.update(zip(take_ids(segment.all_ids(), numbers).tolist(), penalties[numbers].tolist()))
    return found


def _allowed(index: Searchable, conditions: Conditions) -> set:
    """Ids of the documents that fulfil conditions."""
    if not isinstance(index, Index):
        raise IndexingError("--dense with --engine: --fusion rerank alone, because the others need every document's id")
    found: set = set()
    for segment in index.segments:
        out = conditions.left_out(segment)
        alive = np.unpackbits(out, count=segment.documents, bitorder="little") == 0 if len(out) else segment.alive()
        found.update(take_ids(segment.all_ids(), np.flatnonzero(alive)).tolist())
    return found


def fused_hits(index: Searchable, query: Any, options: argparse.Namespace, ids: Any, conditions: dict) -> list[Hit]:
    """`hybrid` with the options of `lexlip search`."""
    dense = DenseVectors(options.dense, index.manifest.settings.ids)
    if options.dense_query is not None:
        try:
            vector = np.load(options.dense_query, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IndexingError(f"--dense-query {options.dense_query}: no .npy file ({error})") from error
    elif options.bag is not None:
        raise IndexingError("--dense with --bag needs the dense query: --dense-query FILE.npy")
    else:
        vector = dense.encode(options.dense_text, options.image)
    return hybrid(index, query, dense, vector, options.k, options.fusion, ids=ids, **conditions)
