"""Ranked lists of several engines as one: reciprocal ranks and weighted scores, by the names that ranx uses.

    fuse([lexicon, dense], method="rrf", params={"k": 60})
    fuse([lexicon, dense], method="wsum", norm="min-max", params={"weights": (0.6, 0.4)})

A list may be hits (id, score), best first, or a mapping of id to score; a run maps each query to such a list. Cormack,
Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from lexlip.errors import IndexingError
from lexlip.index.index import Hit

METHODS, NORMS = ("rrf", "wsum"), ("min-max", None)
K = 60  # of the paper


def fuse(
    runs: Sequence[Any], norm: str | None = "min-max", method: str = "rrf", params: Mapping[str, Any] | None = None
) -> Any:
    """Several lists, or several runs, as one.

    Args:
        runs: lists of one query, or mappings of query to list; a query that a run lacks has an empty list there.
        norm: of scores before they are weighted: "min-max" to 0 to 1 in each list, or None.
        method: "rrf", the sum of 1 / (k + rank); or "wsum", the sum of weight x score.
        params: "k" (60) of rrf, "weights" of wsum (equal ones).

    Returns:
        Hits, best first, equal scores by id; of runs, a mapping of query to those.

    Raises:
        IndexingError: no runs, another method or norm, weights that do not fit.
    """
    params = dict(params or {})
    if not runs:
        raise IndexingError("fuse needs at least one run")
    if method not in METHODS or norm not in NORMS:
        raise IndexingError(f"method={method!r}, norm={norm!r}: rrf or wsum, and min-max or None")
    if unknown := set(params) - {"k" if method == "rrf" else "weights"}:
        raise IndexingError(f"params: {method} has no {min(unknown)!r}")
    numbers = (isinstance(value, Real) for run in runs if isinstance(run, Mapping) for value in run.values())
    if all(isinstance(run, Mapping) for run in runs) and any(runs) and not any(numbers):
        queries = dict.fromkeys(query for run in runs for query in run)
        return {query: fuse([run.get(query, ()) for run in runs], norm, method, params) for query in queries}
    lists = [_hits(run) for run in runs]
    scores = _rrf(lists, params.get("k", K)) if method == "rrf" else _wsum(lists, norm, params.get("weights"))
    return sorted((Hit(id, score) for id, score in scores.items()), key=lambda hit: (-hit.score, _order(hit.id)))


def _rrf(lists: list[list[Hit]], k: float) -> dict[int | str, float]:
    if not k >= 0:
        raise IndexingError(f"k={k}: 0 or more")
    scores: dict[int | str, float] = {}
    for hits in lists:
        for rank, hit in enumerate(hits, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (k + rank)
    return scores


def _wsum(lists: list[list[Hit]], norm: str | None, weights: Sequence[float] | None) -> dict[int | str, float]:
    weights = [1.0] * len(lists) if weights is None else list(weights)
    if len(weights) != len(lists):
        raise IndexingError(f"{len(weights)} weights for {len(lists)} runs")
    scores: dict[int | str, float] = {}
    for hits, weight in zip(lists, weights):
        least = min((hit.score for hit in hits), default=0.0) if norm else 0.0
        width = max(max((hit.score for hit in hits), default=0.0) - least, 1e-9) if norm else 1.0
        for hit in hits:
            scores[hit.id] = scores.get(hit.id, 0.0) + weight * (hit.score - least) / width
    return scores


def _hits(run: Mapping[Any, float] | Iterable[tuple[Any, float]]) -> list[Hit]:
    if isinstance(run, Mapping):
        return sorted((Hit(*item) for item in run.items()), key=lambda hit: (-hit.score, _order(hit.id)))
    return [Hit(*hit) for hit in run]


def _order(id: int | str) -> tuple[int, bytes]:
    """Numbers by value, strings by their bytes."""
    return (0, id.encode(errors="surrogatepass")) if isinstance(id, str) else (id, b"")
