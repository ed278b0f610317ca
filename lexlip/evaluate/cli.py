"""lexlip qrels, evaluate and eval-mteb: what belongs together, and how well it is found."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from lexlip.errors import UserError
from lexlip.models.source import check_source
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input, check_output


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook the commands into the parser of the `lexlip` command."""
    from lexlip.encode.cli import table_options

    qrels = commands.add_parser("qrels", help="which image belongs to which caption, in TREC's format")
    corpus = qrels.add_mutually_exclusive_group(required=True)
    table_options(corpus, qrels, "test")
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

    benchmark = commands.add_parser("eval-mteb", help="retrieval tasks of MTEB and MIEB (needs mteb 2)")
    benchmark.add_argument("--model", required=True, help="model folder, or a name on the hub")
    trust_option(benchmark)
    benchmark.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="such as Flickr30kT2IRetrieval")
    benchmark.add_argument("--languages", nargs="+", metavar="CODE", help="of the tasks, such as eng (default: all)")
    benchmark.add_argument("--dense", action="store_true", help="scores of dense vectors in place of our index")
    benchmark.add_argument("--top-k", type=int, metavar="K", help="keep the K heaviest terms of each document")
    benchmark.add_argument("--batch-size", type=int, default=64, help="inputs at once (default: 64)")
    benchmark.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    benchmark.add_argument("--results", type=Path, metavar="DIR", help="also keep mteb's own files of results there")
    benchmark.add_argument("--metrics-file", type=Path, metavar="FILE", help="also write the numbers to this JSON file")
    benchmark.set_defaults(run=_benchmark)


def _qrels(options: argparse.Namespace) -> None:
    for file in options.arrow or ():
        check_input("--arrow", file)
    check_input("--tsv", options.tsv)
    check_output("--out", options.out)
    check_output("--queries", options.queries)
    if options.queries is not None and options.direction == "i2t":
        raise UserError("--queries: with --direction i2t images are the queries; lexlip encode, then --query-vectors")
    from lexlip.encode.cli import table_of
    from lexlip.evaluate.qrels import write_qrels, write_queries
    from lexlip_data.sources.skipped import USUAL_RULES

    captions = table_of(options, "texts", USUAL_RULES)
    if captions.left_out:
        count, first = len(captions.left_out), captions.left_out[0]
        print(f"{count:,} rows or samples of the input are left out, such as {first}", file=sys.stderr)
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

    note = partial(print, file=sys.stderr)
    values = evaluate_run(options.run_file, options.qrels, options.measures, note)
    means = {name: round(float(of_queries.mean()), 6) for name, of_queries in values.items()}
    result: dict = {"run": str(options.run_file), "queries": len(next(iter(values.values()))), "measures": means}
    if options.baseline is not None:
        baseline = evaluate_run(options.baseline, options.qrels, options.measures, note)
        result["baseline"] = {
            "run": str(options.baseline), "test": options.test, "p": compare(values, baseline, options.test),
            "measures": {name: round(float(of_queries.mean()), 6) for name, of_queries in baseline.items()},
        }  # fmt: skip
    print(json.dumps(result, indent=2))
    if options.metrics_file is not None:
        write_json(result, options.metrics_file)


def _benchmark(options: argparse.Namespace) -> None:
    check_source("--model ", options.model)
    check_output("--metrics-file", options.metrics_file)
    check_output("--results", options.results, folder=True)
    if options.dense and options.top_k is not None:
        raise UserError("--top-k cuts what the index holds; it does not go with --dense")
    for option, number in (("--top-k", options.top_k), ("--batch-size", options.batch_size)):
        if number is not None and number < 1:  # told before mteb fetches the data
            raise UserError(f"{option} {number}: a whole number of at least 1")
    try:
        import mteb
    except ImportError as error:
        raise UserError("mteb is needed for this: pip install 'mteb>=2'") from error
    from lexlip.evaluate.mteb import LexLIPEncoder, LexLIPSearch
    from lexlip.models.lexlip import LexLIP
    from lexlip.utils.devices import usable_device
    from lexlip.utils.files import write_json

    device = usable_device(options.device)
    try:
        tasks = list(mteb.get_tasks(tasks=options.tasks, languages=options.languages))
    except (KeyError, ValueError) as error:
        raise UserError(f"--tasks {' '.join(options.tasks)}: {' '.join(str(error).split())}") from error
    if not tasks:
        raise UserError(f"--tasks {' '.join(options.tasks)}: mteb has none of these in such languages")
    model = LexLIP.from_pretrained(options.model, trust_sources=options.trust_sources).to(device)
    encoder = LexLIPEncoder(model) if options.dense else LexLIPSearch(model, top_k_terms=options.top_k)
    cache = mteb.ResultCache(options.results) if options.results else None
    done = mteb.evaluate(encoder, tasks, cache=cache, encode_kwargs={"batch_size": options.batch_size})
    result = {"model": options.model, "tasks": {each.task_name: each.scores for each in done.task_results}}
    print(json.dumps(result, indent=2))
    if options.metrics_file is not None:
        write_json(result, options.metrics_file)
