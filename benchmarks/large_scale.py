"""Sparse retrieval over a million documents: queries per second, bytes and recall, against dense search, in one run.

    python benchmarks/large_scale.py --synthetic 16 --json rows.json
    python benchmarks/large_scale.py --synthetic 32 --docs 200000
    python benchmarks/large_scale.py --model model_folder --data flickr8k --captions flickr30k_captions.tsv.gz \\
        --phrases pycocoevalcap-1.2-py3-none-any.whl --distractors 0 10000 100000 1000000 --json rows.json --curves out

Every engine runs on one thread; contenders.py says how they are timed. Bytes are those on disk, ids and checksums
included; for the flat dense rows they are the vectors alone. Memory while building and the time it takes are those of a
process of its own.

With --synthetic, recall@10 is against exact float64 scores of the unrounded vectors. With --model the right answers are
known: see trained_run.py, and trained_set.py for what the distractors are.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import _one_thread  # noqa: F401
import checkout
import torch
from bmp_engine import BMPEngine
from contenders import BATCH, Contender, K, enter, race, rates, say
from dense_engines import FaissEngine, FlatVectors
from retrieval_sets import SYNTHETIC, SyntheticSet, exact_best, synthetic
from tables import print_synthetic, print_trained

from lexlip.index import write_shard
from lexlip.index.adapters import installed
from lexlip.index.engine import LexLIPEngine
from lexlip.utils.files import write_json

ENGINES = ("dense", *FaissEngine.KINDS, "bm25")


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run the benchmark; returns the rows that it prints and writes."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data go together")
    if options.dense_model and not options.model:
        parser.error("--dense-model goes with --model")
    if options.model and options.adapters:
        _check_adapters(parser, options)
    if options.queries < 1:
        parser.error(f"--queries {options.queries}: at least 1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="large-scale-") as folder:
        rows = (_trained if options.model else _synthetic)(options, Path(folder))
    if options.json:
        write_json(rows, options.json)
    return rows


def _check_adapters(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse before anything is encoded what would leave the adapters without a row."""
    if options.adapter_top_k not in options.top_k:
        kept = " ".join(map(str, options.top_k))
        parser.error(f"--adapter-top-k {options.adapter_top_k} is none of --top-k {kept}")
    if min(options.distractors) > options.adapter_documents:
        parser.error(
            f"--adapter-documents {options.adapter_documents} is fewer than the {min(options.distractors)} of "
            "--distractors, so adapters would get no row; raise it, or give --adapters no name"
        )


def _synthetic(options: argparse.Namespace, folder: Path) -> list[dict]:
    data = synthetic(options.synthetic, options.docs, options.queries)
    rows = run(data, folder, options.rounds, options.impact_bits)
    print_synthetic(rows)
    print(f"{data}; {machine()}")
    return rows


def _trained(options: argparse.Namespace, folder: Path) -> list[dict]:
    import trained_run
    from curves import frequencies, write_curves
    from dense_set import DenseSet
    from trained_set import TrainedSet

    from lexlip.models.auto import load_folder_of_any_head
    from lexlip.models.lexlip import LexLIP

    model = LexLIP.from_pretrained(options.model)
    dense_model = load_folder_of_any_head(options.dense_model) if options.dense_model else None
    vectors = options.vectors or folder / "vectors"
    directions = trained_run.DIRECTIONS.items()
    kinds = [gallery for direction, (_, gallery) in directions if direction.split()[0] in options.directions]
    most = max(options.distractors)
    data = TrainedSet(model, options.data, options.captions, options.phrases, vectors, most, kinds)
    dense = DenseSet(dense_model, data, vectors) if dense_model is not None else None
    rows = trained_run.run(data, dense, options, folder)
    print_trained(rows)
    for kind, parts in data.sources.items():
        print(f"distractors of {kind}: " + ", ".join(f"{count:,} {name}" for name, count in parts))
    print(machine())
    if options.curves:
        fractions = frequencies(data, {kind: most if kind in kinds else 0 for kind in data.folders})
        print("\n".join(write_curves(rows, fractions, options.curves)))
    return rows


def machine() -> str:
    """For the foot of a table."""
    return f"one thread, {platform.processor() or platform.machine()}, Python {platform.python_version()}"


def run(data: SyntheticSet, folder: Path, rounds: int, impact_bits: list[int]) -> list[dict]:
    """All contenders on one set."""
    say(f"{data.documents:,} documents of {data.terms} terms, {data.queries:,} queries of {data.query_terms}")
    write_shard(folder / "vectors.arrow", data.batches())
    bags = data.bags()
    contenders = []
    for bits in impact_bits:
        engine = LexLIPEngine(folder / f"index-{bits}", {"impact_bits": bits})
        contenders.append(enter(f"lexlip, {bits}-bit impacts", engine, folder / "vectors.arrow", bags))
    if BMPEngine.is_installed():
        engine = BMPEngine(folder / "bmp")
        contenders.append(enter("bmp, blocks of 16", engine, folder / "vectors.arrow", bags))
    say("exact scores")
    truth = exact_best(data, K)
    for contender in contenders:
        contender.facts["recall@10"] = recall([contender.one(query) for query in range(len(bags))], truth)
    say("dense vectors")
    dense = FlatVectors.random(data.documents, BATCH, data.seed)
    contenders += [
        Contender(dense.name, lambda query: dense.search(query % BATCH, K), None, dense.bytes(), role="flat"),
        Contender(
            f"matrix product, {dense.width}-d, batches of {BATCH}", None,
            lambda queries: dense.product([query % BATCH for query in queries], K), dense.bytes(), role="product",
        ),
    ]  # fmt: skip
    nearest = [dense.search(query, K) for query in range(10)]
    for contender in contenders[-2:]:
        results = dense.product(list(range(10)), K) if contender.one is None else nearest
        contender.facts["recall@10"] = recall(results, nearest)
    say(f"{rounds} rounds")
    race(contenders, rounds, len(bags))
    return rates(contenders, data.documents)


def recall(results: list[list], truth: list[list]) -> float:
    """Fraction of the best documents that are among the results; a query with fewer than ten counts its own."""
    return statistics.fmean(len(set(ids) & set(best)) / len(best) for ids, best in zip(results, truth) if best)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--synthetic", type=int, choices=sorted(SYNTHETIC), help="terms a document")
    what.add_argument("--model", help="model folder, or a name on the hub")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--impact-bits", type=int, nargs="+", default=[9], help="of the index; several give a row each")
    parser.add_argument("--work", help="folder for vectors and indexes, removed afterwards; the system's by default")
    parser.add_argument(
        "--queries", type=int, default=1000,
        help="the same for every engine; with --model a fixed random sample of each direction's val documents",
    )  # fmt: skip
    parser.add_argument("--json", help="write the rows to this file")

    set_ = parser.add_argument_group("with --synthetic")
    set_.add_argument("--docs", type=int, default=1_000_000, help="documents")

    trained = parser.add_argument_group("with --model")
    trained.add_argument("--data", type=Path, help="folder with one *_train.tsv and one *_val.tsv")
    trained.add_argument(
        "--dense-model", help="folder of a model with a dense head, for flat rows of its vectors besides"
    )
    trained.add_argument("--captions", type=Path, help="more captions: a gzipped TSV with the columns title and image")
    trained.add_argument("--phrases", type=Path, help="the wheel of pycocoevalcap, for its English phrases")
    trained.add_argument("--vectors", type=Path, help="folder that keeps the vectors for the next run")
    trained.add_argument("--distractors", type=int, nargs="+", default=[0, 10_000, 100_000, 1_000_000])
    trained.add_argument(
        "--directions", nargs="+", choices=("text", "image"), default=["text", "image"], help="of the queries"
    )
    trained.add_argument(
        "--top-k", type=int, nargs="+", default=[8, 16, 32, 64, 128],
        help="terms kept; uncut vectors are always included",
    )  # fmt: skip
    trained.add_argument("--drop", type=float, nargs="*", default=[0.1], help="of searches that leave weak terms out")
    trained.add_argument(
        "--engines", nargs="*", choices=(*ENGINES, BMPEngine.name), default=list(ENGINES), help="besides ours"
    )
    trained.add_argument("--adapters", nargs="*", default=[name for name in installed() if name != "lexlip"])
    trained.add_argument("--adapter-top-k", type=int, default=32, help="terms kept of what adapters get")
    trained.add_argument("--adapter-documents", type=int, default=200_000, help="adapters are not given more")
    trained.add_argument("--hnsw-documents", type=int, default=200_000, help="HNSW is not built over more")
    trained.add_argument("--round-seconds", type=float, default=2, help="of an engine's single queries, and of batches")
    trained.add_argument("--curves", type=Path, help="folder for curves as PNG and SVG; needs matplotlib")
    return parser


if __name__ == "__main__":
    checkout.run(main)
