"""lexlip qrels and lexlip evaluate: what belongs together, and how well a run file finds it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lexlip.errors import UserError
from lexlip.utils.paths import check_input, check_output
from lexlip_data.convert import arguments


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook the commands into the parser of the `lexlip` command."""
    qrels = commands.add_parser("qrels", help="which image belongs to which caption, in TREC's format")
    corpus = qrels.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--arrow", type=Path, nargs="+", metavar="FILE", help="Arrow files of captioned images")
    corpus.add_argument("--tsv", type=Path, metavar="FILE", help="a table: title, filepath, and optionally image_id")
    corpus.add_argument("--tar", nargs="+", metavar="PATTERN", help="tar shards, such as 'x/{00000..00331}.tar'")
    corpus.add_argument("--parquet", nargs="+", metavar="PATTERN", help="Parquet files, such as 'x/test-*.parquet'")
    arguments.of_tars(qrels.add_argument_group("of --tar").add_argument)
    of_parquet = qrels.add_argument_group("of --parquet")
    arguments.of_parquet(of_parquet.add_argument)
    qrels.add_argument("--direction", choices=("t2i", "i2t"), default="t2i", help="what looks for what (default: t2i)")
    qrels.add_argument("--out", type=Path, required=True, metavar="FILE")
    qrels.add_argument("--queries", type=Path, metavar="FILE", help="also write ID<TAB>CAPTION, for lexlip search")
    qrels.set_defaults(run=_qrels, images=None)

    evaluate = commands.add_parser("evaluate", help="measure a run file, or compare two (needs ir-measures)")
    evaluate.add_argument("--run", dest="run_file", type=Path, required=True, metavar="FILE")
    evaluate.add_argument("--qrels", type=Path, required=True, metavar="FILE")
    evaluate.add_argument(
        "--baseline", type=Path, metavar="RUN", help="another run, for differences and p values (ranx)"
    )
    evaluate.add_argument("--test", choices=("fisher", "student"), default="fisher", help="of --baseline")
    evaluate.add_argument("--measures", nargs="+", default=(), metavar="NAME", help="such as nDCG@10 (default: eight)")
    evaluate.add_argument("--metrics-file", type=Path, metavar="FILE", help="also write the numbers to this JSON file")
    evaluate.set_defaults(run=_evaluate)


def _qrels(options: argparse.Namespace) -> None:
    for file in options.arrow or ():
        check_input("--arrow", file)
    check_input("--tsv", options.tsv)
    check_output("--out", options.out)
    check_output("--queries", options.queries)
    if options.queries is not None and options.direction == "i2t":
        raise UserError("--queries: with --direction i2t images are the queries; lexlip encode, then --query-vectors")
    from lexlip.encode.tables import of_table, read_arrow, read_tsv
    from lexlip.evaluate.qrels import write_qrels, write_queries
    from lexlip_data.sources.skipped import USUAL_RULES

    captions: Any
    if options.arrow:
        captions = read_arrow(options.arrow, "texts")
    elif options.tsv:
        captions = read_tsv(options.tsv, "texts")
    elif options.tar:
        captions = of_table(arguments.tars_of(options, options.tar, "corpus", "encode", USUAL_RULES), "texts")
    else:
        captions = of_table(arguments.parquet_of(options, options.parquet, "corpus", "encode", USUAL_RULES), "texts")
    queries, lines = write_qrels(captions.read(0, len(captions)), options.out, options.direction)
    if options.queries is not None:
        write_queries(captions.read(0, len(captions)), options.queries)
    print(f"{queries:,} queries, {lines:,} right documents -> {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    for option, file in (("--run", options.run_file), ("--qrels", options.qrels), ("--baseline", options.baseline)):
        check_input(option, file)
    check_output("--metrics-file", options.metrics_file)
    from lexlip.evaluate.run_files import compare, evaluate_run
    from lexlip.utils.files import write_json

    values = evaluate_run(options.run_file, options.qrels, options.measures)
    means = {name: round(float(of_queries.mean()), 6) for name, of_queries in values.items()}
    result: dict = {"run": str(options.run_file), "queries": len(next(iter(values.values()))), "measures": means}
    if options.baseline is not None:
        baseline = evaluate_run(options.baseline, options.qrels, options.measures)
        result["baseline"] = {
            "run": str(options.baseline), "test": options.test, "p": compare(values, baseline, options.test),
            "measures": {name: round(float(of_queries.mean()), 6) for name, of_queries in baseline.items()},
        }  # fmt: skip
    print(json.dumps(result, indent=2))
    if options.metrics_file is not None:
        write_json(result, options.metrics_file)
