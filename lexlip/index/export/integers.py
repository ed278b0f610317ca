"""Anserini: a JsonVectorCollection with whole-number impacts, and queries that repeat each term by its weight.

A score there is the sum of repetitions x impacts, which is scale^2 times ours but for the rounding: impacts are off by
at most half, repetitions too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lexlip.index.export.files import write_lines, write_script
from lexlip.sparse import SparseRows

_LOAD = """#!/usr/bin/env bash
# Builds Anserini's index from the documents beside this script, and searches it. Run it with ANSERINI naming the jar:
#
#   ANSERINI=anserini-fatjar.jar bash load.sh lucene-index
#
# run.txt must begin with what expected.json holds, up to equal scores and rounding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${ANSERINI:?the path of the jar}"
index=${1:-lucene-index}
java -cp "$ANSERINI" io.anserini.index.IndexCollection -collection JsonVectorCollection -input documents \\
  -index "$index" -generator DefaultLuceneDocumentGenerator -threads 1 -impact -pretokenized -optimize
java -cp "$ANSERINI" io.anserini.search.SearchCollection -index "$index" -topics query.tsv -topicReader TsvInt \\
  -output run.txt -impact -pretokenized -hits 10
"""


def write(batches: Iterable[SparseRows], out: Path, scale: int) -> None:
    """documents/*.jsonl and load.sh."""
    write_lines(_entries(batches, scale), out / "documents", "jsonl")
    write_script(_LOAD, out / "load.sh")


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
