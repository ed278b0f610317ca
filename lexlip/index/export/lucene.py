"""OpenSearch and Elasticsearch: a document's terms as features of Lucene, a query as a weighted sum of them.

Lucene keeps a feature's value as a term frequency, the upper 17 bits of its float32: 9 significant bits, the rest cut
off (`FeatureField`). Our weights have 11. So a weight is written as two features, `T` with its first 9 bits and `T+`
with the rest, which has at most 2; a query names both with the same weight, and the sum is exact. With `rounded`
there is one feature with the nearest 9 bits: fewer postings, and scores that differ by up to 0.2%.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.export.files import copy_script, write_lines
from lexlip.sparse import SparseRows

ENGINES = ("opensearch", "elasticsearch")
FIELD = "vector"
_REST = "+"
_CUT = 15  # low bits of a float32 that Lucene does not keep
_MAX_ID = 512  # bytes
MAX_WEIGHT = 64  # of a clause in Lucene
FIELDS = {
    "opensearch": {"type": "rank_features"},
    # In a field that prunes, the engine would leave out common terms by itself.
    "elasticsearch": {"type": "sparse_vector", "index_options": {"prune": False}},
}


def write(engine: str, batches: Iterable[SparseRows], out: Path, rounded: bool) -> None:
    """index.json, documents/*.ndjson and load.sh."""
    index = {
        "settings": {"index": {"number_of_shards": 1, "refresh_interval": "-1"}},
        "mappings": {
            "dynamic": "strict", "_source": {"excludes": [FIELD]}, "properties": {FIELD: FIELDS[engine]},
        },
    }  # fmt: skip
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    write_lines(_entries(batches, rounded), out / "documents", "ndjson")
    copy_script("load_lucene.sh", out / "load.sh")


def query(engine: str, terms: list[int], weights: list[float], k: int, rounded: bool) -> dict:
    """The body of a search request.

    Raises:
        IndexingError: a weight above 64, which Lucene refuses.
    """
    if weights and max(weights) > MAX_WEIGHT:
        raise IndexingError(f"a query's weight of {max(weights)}: Lucene takes up to {MAX_WEIGHT}; divide all of them")
    names = [str(term) for term in terms]
    tokens = dict(zip(names, weights))
    if not rounded:
        tokens.update((name + _REST, weight) for name, weight in zip(names, weights))
    clause: dict[str, dict]
    if engine == "opensearch":
        clause = {"neural_sparse": {FIELD: {"query_tokens": tokens}}}
    else:
        clause = {"sparse_vector": {"field": FIELD, "query_vector": tokens, "prune": False}}
    return {"size": k, "_source": False, "track_total_hits": False, "query": clause}


def _entries(batches: Iterable[SparseRows], rounded: bool) -> Iterator[str]:
    """Two lines a document: what to do, and the document."""
    for rows in batches:
        both = np.stack(split(rows.weights.astype(np.float32), rounded), axis=1)
        for id, terms, values in replace(rows, weights=both).documents():
            id = str(id)
            if not 0 < len(id.encode()) <= _MAX_ID:
                raise IndexingError(f"{rows.source}: id {id[:40]!r}...: the engine takes ids of 1 to {_MAX_ID} bytes")
            action = {"index": {"_id": id}}
            yield f"{json.dumps(action)}\n{json.dumps({FIELD: features(terms.tolist(), values.tolist())})}\n"


def split(values: np.ndarray, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """float32 weights as Lucene keeps two features of each: the first bits, and the rest; 0 where rounded."""
    if rounded:  # cut after half the distance to the next value that Lucene keeps is added
        following = ((values.view(np.uint32) >> _CUT) + np.uint32(1) << _CUT).view(np.float32)
        return _cut(values + (following - _cut(values)) / 2), np.zeros_like(values)
    first = _cut(values)
    return first, values - first


def features(terms: list[int], values: list[list[float]]) -> dict[str, float]:
    """A document's features of its terms and, for each, both values of `split`."""
    named = {}
    for term, (value, more) in zip(terms, values):
        if value > 0:
            named[str(term)] = value
        if more > 0:
            named[f"{term}{_REST}"] = more
    return named


def _cut(values: np.ndarray) -> np.ndarray:
    """What Lucene keeps of float32 values."""
    return (values.view(np.uint32) >> _CUT << _CUT).view(np.float32)
