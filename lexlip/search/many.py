"""Options of `lexlip search` for many queries at once, to a run file. Loads nothing heavy: a single search is quick."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from lexlip.errors import IndexingError
from lexlip.utils.paths import check_input, check_output

FORMATS = ("trec",)
_SINGLE = (  # options of one query's results
    "photos", "plain", "min_score", "filter", "dense", "dense_query", "explain", "json", "open", "contact_sheet",
)  # fmt: skip


def add_options(search: argparse.ArgumentParser) -> None:
    """What `lexlip search` takes for many queries at once."""
    many = search.add_argument_group("many queries, to a file")
    many.add_argument("--queries", type=Path, metavar="FILE", help="a text file; each line is ID<TAB>TEXT, plain text")
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
    given = [name for name in ("queries", "query_vectors") if getattr(options, name)]
    if not given:
        if options.out is not None:
            raise IndexingError(f"--out {options.out}: a run file is of --queries or --query-vectors")
        return False
    others = [name for name in ("text", "image", "bag", *_SINGLE) if getattr(options, name) not in (None, False, [])]
    if others or len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in [*given, *others])
        raise IndexingError(f"{names} do not go together: a run file has --queries or --query-vectors alone")
    if options.index is None and options.engine is None:
        raise IndexingError("give --index, or --engine and --uri")
    if options.out is None:
        raise IndexingError("name the run file with --out")
    if re.search(r"\s", options.run_name) or not options.run_name:
        raise IndexingError(f"--run-name {options.run_name!r}: one word without spaces")
    check_input("--queries", options.queries)
    check_output("--out", options.out)
    return True


def write(options: argparse.Namespace) -> None:
    """Search for each query and write the run file."""
    from lexlip.index.places import place_of
    from lexlip.index.run_files import queries_of, write_run
    from lexlip.search.models import model_for

    place = place_of(options)
    assert place is not None
    model: Any
    model, sure = model_for(options, place, "text", False) if options.queries or options.model else (None, False)
    index = place.open(model, options.trust_sources, force=options.force or sure)
    queries = queries_of(options.queries, options.query_vectors, index.model)
    count = write_run(index, queries, options.out, options.k, options.run_name, drop=options.drop)
    print(f"{count:,} queries, {options.k:,} documents each at most -> {options.out}")
