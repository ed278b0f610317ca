"""Run files: the results of many queries in TREC's format, which ir_measures, trec_eval and ranx read.

    lexlip search --index photos.index --queries queries.tsv -k 100 --format trec --out run.trec

A line is `query Q0 document rank score name`, separated by spaces, so ids are written without any: see `trec_id`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexlip.errors import IndexingError
from lexlip.index.index import Index
from lexlip.index.layout import MAX_QUERY_TERMS
from lexlip.index.queries import Bag, bag_of_encoded
from lexlip.index.shards import read_shards
from lexlip.utils.files import write_whole
from lexlip.utils.paths import check_input, check_output
from lexlip_data.errors import one_line
from lexlip_data.sources.kinds import require_text

if TYPE_CHECKING:
    from lexlip.index.queries import Model

FORMATS = ("trec",)
BATCH = 256  # queries encoded and searched at a time
_NOT_IN_IDS = re.compile(r"[\s%\x00-\x1f\x7f-\x9f]")


def add_options(search: argparse.ArgumentParser) -> None:
    """What `lexlip search` takes for many queries at once."""
    many = search.add_argument_group("many queries, to a file")
    many.add_argument("--queries", type=Path, metavar="FILE", help="a text file; each line is ID<TAB>TEXT")
    many.add_argument(
        "--query-vectors", type=Path, nargs="+", metavar="SHARDS",
        help="what lexlip encode made of texts or images: each document is a query",
    )  # fmt: skip
    many.add_argument("--format", choices=FORMATS, default="trec", help="of the file (default: trec)")
    many.add_argument("--out", type=Path, metavar="FILE", help="the run file")
    many.add_argument("--run-name", default="lexlip", help="last column of the run file (default: lexlip)")


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether a search is of many queries.

    Raises:
        IndexingError: it is, and one query was given too, or no file to write; or it is not, and one was.
    """
    given = [name for name in ("text", "image", "bag", "queries", "query_vectors") if getattr(options, name)]
    many = [name for name in given if name.startswith("quer")]
    if not many:
        if options.out is not None:
            raise IndexingError(f"--out {options.out}: a run file is of --queries or --query-vectors")
        return False
    if len(given) > 1 or options.explain or options.json:
        others = [*given, *(name for name in ("explain", "json") if getattr(options, name))]
        raise IndexingError(
            f"{' and '.join('--' + name.replace('_', '-') for name in others)} do not go together: a run file has "
            "--queries FILE or --query-vectors SHARDS, and no --explain or --json"
        )
    if options.out is None:
        raise IndexingError("name the run file with --out")
    if _NOT_IN_IDS.search(options.run_name) or not options.run_name:
        raise IndexingError(f"--run-name {options.run_name!r}: one word without spaces")
    check_input("--queries", options.queries)
    check_output("--out", options.out)
    return True


def write_run(
    index: Index, queries: Iterable[tuple[int | str, Bag]], out: Path, k: int, name: str, **search: Any
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


def queries_of(options: argparse.Namespace, model: Model | None) -> Iterator[tuple[int | str, Bag]]:
    """Id and bag of each query that the options name.

    Raises:
        IndexingError: a line that is none, an id that comes twice.
    """
    if options.queries is None:
        seen: set[int | str] = set()
        for rows in read_shards(options.query_vectors):
            for id, terms, weights in rows.top_k(MAX_QUERY_TERMS).documents():
                if id in seen:
                    raise IndexingError(f"the query vectors hold the id {one_line(id)!r} twice")
                seen.add(id)
                yield id, (terms, weights)
        return
    lines = iter(read_queries(options.queries))
    while batch := list(islice(lines, BATCH)):
        assert model is not None
        vectors = model.encode_text([text for _, text in batch])
        yield from ((id, bag_of_encoded(vector)) for (id, _), vector in zip(batch, vectors))


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
