"""Run files: the results of many queries in TREC's format, which ir_measures, trec_eval and ranx read.

    lexlip search --index photos.index --queries queries.tsv -k 100 --format trec --out run.trec

A line is `query Q0 document rank score name`, separated by spaces, so ids are written without any: see `trec_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lexlip.errors import IndexingError
from lexlip.index.layout import MAX_QUERY_TERMS
from lexlip.index.places import Searchable
from lexlip.index.queries import Bag, Model, bags_of
from lexlip.index.shards import read_shards
from lexlip.utils.files import write_whole
from lexlip_data.errors import one_line
from lexlip_data.sources.kinds import require_text

BATCH = 256  # queries encoded and searched at a time
_NOT_IN_IDS = re.compile(r"[\s%\x00-\x1f\x7f-\x9f]")


def write_run(
    index: Searchable, queries: Iterable[tuple[int | str, Bag]], out: Path, k: int, name: str, **search: Any
) -> int:
    """Search an index for each query and write what it finds, `k` documents at most; returns the number of queries."""
    count = 0

    def write(file) -> None:
        nonlocal count
        rest = iter(queries)
        while batch := list(islice(rest, BATCH)):
            for (query, _), hits in zip(batch, index.search_batch([bag for _, bag in batch], k, **search)):
                lines = (
                    f"{trec_id(query)} Q0 {trec_id(hit.id)} {rank} {hit.score!r} {name}\n"
                    for rank, hit in enumerate(hits, 1)
                )
                file.write("".join(lines).encode())
            count += len(batch)

    write_whole(out, write)
    return count


def trec_id(id: int | str) -> str:
    """An id as run files and qrels have it: spaces, control characters and % as %XX.

    Raises:
        IndexingError: it is empty.
    """
    text = str(id)
    if not text:
        raise IndexingError("an id is empty, which a run file cannot hold")
    return _NOT_IN_IDS.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def queries_of(
    file: Path | None, shards: Sequence[Path] | None, model: Model | None
) -> Iterator[tuple[int | str, Bag]]:
    """Id and bag of each query of a file as `read_queries` takes it, or of shards of vectors.

    Raises:
        IndexingError: a line that is none, an id that comes twice.
    """
    if file is None:
        seen: set[int | str] = set()
        for rows in read_shards(shards or ()):
            for id, terms, weights in rows.top_k(MAX_QUERY_TERMS).documents():
                if id in seen:
                    raise IndexingError(f"the query vectors hold the id {one_line(id)!r} twice")
                seen.add(id)
                yield id, (terms, weights)
        return
    lines = iter(read_queries(file))
    while batch := list(islice(lines, BATCH)):
        ids, texts = zip(*batch)
        yield from zip(ids, bags_of(texts, model, [f"query {one_line(id, 100)}" for id in ids]))


def read_queries(path: Path) -> list[tuple[str, str]]:
    """Id and text of each line of a file.

    Raises:
        IndexingError: a line without a TAB, an empty id or text, an id that comes twice, text that is not UTF-8.
        DataError: a file of another kind.
    """
    require_text(path, "a text file of queries")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise IndexingError(f"{path} is not UTF-8 text: {error}") from error
    queries: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:
            continue
        id, tab, text = line.rstrip("\r").partition("\t")
        if not tab or not id.strip() or not text.strip():
            raise IndexingError(f"{path}, line {number}: {one_line(line, 100)!r} is not ID<TAB>TEXT")
        if id in queries:
            raise IndexingError(f"{path}, line {number}: the id {one_line(id, 100)!r} came before")
        queries[id] = text
    return list(queries.items())
