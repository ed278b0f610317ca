"""Anserini: a JsonVectorCollection with whole-number impacts, and queries that repeat each term by its weight.

A score there is the sum of repetitions x impacts, which is scale^2 times ours but for the rounding: impacts are off by
at most half, repetitions too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lexlip.index.export.files import copy_script, write_lines
from lexlip.sparse import SparseRows


def write(batches: Iterable[SparseRows], out: Path, scale: int) -> None:
    """documents/*.jsonl and load.sh."""
    write_lines(_entries(batches, scale), out / "documents", "jsonl")
    copy_script("load_anserini.sh", out / "load.sh")


def query(terms: list[int], weights: list[float], scale: int) -> str:
    """Term numbers, each repeated by its weight."""
    return " ".join(" ".join([str(term)] * round(weight * scale)) for term, weight in zip(terms, weights)).strip()


def impacts(weights: np.ndarray, scale: int) -> np.ndarray:
    """(n,) float16 weights to int64."""
    return np.rint(weights.astype(np.float64) * scale).astype(np.int64)


def _entries(batches: Iterable[SparseRows], scale: int) -> Iterator[str]:
    for rows in batches:
        for id, terms, whole in replace(rows, weights=impacts(rows.weights, scale)).documents():
            vector = {str(term): number for term, number in zip(terms.tolist(), whole.tolist()) if number}
            yield json.dumps({"id": str(id), "contents": "", "vector": vector}) + "\n"
