"""An index as files that other engines load: `lexlip index export`. Scores and their exactness: docs/SCALING.md.

| format | documents | scores |
| --- | --- | --- |
| opensearch | bulk requests for a `rank_features` field | the same, in float32 |
| elasticsearch | bulk requests for a `sparse_vector` field | the same, in float32 |
| anserini | a JsonVectorCollection | of weights rounded to 1/scale |
| ciff | a Common Index File | of weights rounded to 1/scale |
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index.export import ciff, integers, lucene
from lexlip.index.index import Index
from lexlip.index.queries import Query, bag_of
from lexlip.index.stored import stored_rows
from lexlip_data.sources.files import writing

if TYPE_CHECKING:
    from lexlip.models.lexlip import LexLIP

FORMATS = ("opensearch", "elasticsearch", "anserini", "ciff")
_SAMPLE_TERMS, _SAMPLE_RESULTS = 8, 10


def export(index: Index, format: str, out: str | Path, scale: int = 100, rounded: bool = False) -> int:
    """Write an index for another engine: documents, how to load them, a query and its expected result.

    The folder appears when it is complete.

    Args:
        index: every byte of it is verified first.
        out: a folder that does not exist, or is empty.
        scale: of anserini and ciff: weight x scale is rounded to a whole number.
        rounded: of opensearch and elasticsearch: one feature a term, its weight rounded to 9 bits as Lucene keeps it,
            instead of a second one with the rest.

    Returns:
        How many documents were written.

    Raises:
        IndexingError: no such format, a folder that holds files, an id that the engine does not take.
        DamagedIndex: bytes that are not what was written.
    """
    out = Path(out)
    if format not in FORMATS:
        raise IndexingError(f"format={format!r}: one of {', '.join(FORMATS)}")
    if scale < 1:
        raise IndexingError(f"scale={scale}: at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise IndexingError(f"{out} is not empty: name a new folder")
    damage = index.verify()
    if damage:
        raise DamagedIndex(f"{index.folder}: {damage[0]}")
    target = out.resolve()
    draft = target.with_name(f".{target.name}-{secrets.token_hex(6)}.tmp")
    draft.mkdir(parents=True)
    try:
        with writing(out):
            if format in lucene.ENGINES:
                lucene.write(format, stored_rows(index), draft, rounded)
            elif format == "anserini":
                integers.write(stored_rows(index), draft, scale)
            else:
                ciff.write(index, draft / "index.ciff", scale)
            _write_sample(index, format, draft, scale, rounded)
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return len(index)


def query_body(
    format: str, query: Query, k: int = 10, scale: int = 100, rounded: bool = False, model: LexLIP | None = None
) -> str:
    """A query as the engine takes it, with the same scores as ours: a request's body, or a line of terms.

    Args:
        query: as `Index.search` takes it.
        k: results; of opensearch and elasticsearch.
        scale: of anserini and ciff; scores are then scale^2 times ours.
        rounded: as the export was.
        model: for queries that are texts, images or words.
    """
    terms, weights = bag_of(query, model)
    if format in lucene.ENGINES:
        return json.dumps(lucene.query(format, terms.tolist(), weights.tolist(), k, rounded))
    return integers.query(terms.tolist(), weights.tolist(), scale)


def _write_sample(index: Index, format: str, out: Path, scale: int, rounded: bool) -> None:
    """The heaviest terms of a document as a query, and the results of our index."""
    filled = (
        rows.between(first, first + 1)
        for rows in stored_rows(index)
        for first in np.flatnonzero(np.diff(rows.offsets)).tolist()
    )
    document = next(filled, None)
    if document is None:
        return
    heaviest = document.top_k(_SAMPLE_TERMS)
    sample = dict(zip(heaviest.terms.tolist(), heaviest.weights.tolist()))
    name, lead = ("query.json", "") if format in lucene.ENGINES else ("query.tsv", "1\t")
    body = query_body(format, sample, _SAMPLE_RESULTS, scale, rounded)
    (out / name).write_text(f"{lead}{body}\n", encoding="utf-8")
    hits = [hit._asdict() for hit in index.search(sample, _SAMPLE_RESULTS)]
    (out / "expected.json").write_text(json.dumps(hits, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
