"""Sparse retrieval over a million documents: queries per second, bytes and recall, against dense search, in one run.

    python benchmarks/large_scale.py --synthetic 16 --json rows.json
    python benchmarks/large_scale.py --synthetic 32 --docs 200000

Every engine runs on one thread. Single queries are timed one by one through the engine's public interface, as a caller
would wait for them; engines take turns in rounds, so that a busy machine slows all of them, and rates are medians over
the rounds. Batches likewise. Bytes are what lies on the disk, ids and checksums included; for the dense rows they are
the vectors alone. Recall@10 is against exact float64 scores of the unrounded vectors.

Memory while building and the time it takes are those of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # read when the libraries are loaded

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

import torch  # noqa: E402
from dense_engines import FlatVectors  # noqa: E402
from retrieval_sets import SYNTHETIC, SyntheticSet, exact_best, synthetic  # noqa: E402

from lexlip.index import read_shards, write_shard  # noqa: E402
from lexlip.index.engine import Bag, Engine, LexLIPEngine  # noqa: E402

K = 10
BATCH = 100


@dataclass
class Contender:
    """An engine in the race.

    Attributes:
        name: in the table.
        one: from a query's number to the ids found.
        many: the same for a batch; None where batches are another contender's.
        bytes: on disk.
        single, batch: how many queries a round times, one by one and in batches.
        facts: further columns.
        times: seconds of each single query.
        rates: queries per second of each round, single and batched.
    """

    name: str
    one: Callable[[int], list] | None
    many: Callable[[list[int]], list[list]] | None
    bytes: int
    single: int
    batch: int
    facts: dict = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=lambda: {"single": [], "batch": []})


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run the benchmark; returns the rows that it prints and writes."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    data = synthetic(options.synthetic, options.docs, options.queries)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="large-scale-") as folder:
        rows = run(data, Path(folder), options.rounds, options.impact_bits)
    print_table(rows, data)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def run(data: SyntheticSet, folder: Path, rounds: int, impact_bits: list[int]) -> list[dict]:
    """All contenders on one set."""
    _say(f"{data.documents:,} documents of {data.terms} terms, {data.queries:,} queries of {data.query_terms}")
    write_shard(folder / "vectors.arrow", data.batches())
    bags = data.bags()
    contenders = []
    for bits in impact_bits:
        engine = LexLIPEngine(folder / f"index-{bits}", {"impact_bits": bits})
        contenders.append(sparse(f"lexlip, {bits}-bit impacts", engine, folder / "vectors.arrow", bags))
    _say("exact scores")
    truth = exact_best(data, K)
    for contender in contenders:
        found = [contender.one(query) for query in range(len(bags))]
        contender.facts["recall@10"] = recall(found, truth)
    _say("dense vectors")
    dense = FlatVectors(data.documents, BATCH, data.seed)
    contenders += [
        Contender(dense.name, lambda query: dense.search(query % BATCH, K), None, dense.bytes(), 5, 0),
        Contender(
            f"matrix product, {dense.queries.shape[1]}-d, batches of {BATCH}", None,
            lambda queries: dense.product([query % BATCH for query in queries], K), dense.bytes(), 0, BATCH,
        ),
    ]  # fmt: skip
    nearest = [dense.search(query, K) for query in range(10)]
    for contender in contenders[-2:]:
        found = dense.product(list(range(10)), K) if contender.one is None else nearest
        contender.facts["recall@10"] = recall(found, nearest)
    _say(f"{rounds} rounds")
    race(contenders, rounds, len(bags))
    return rows_of(contenders, data.documents)


def sparse(name: str, engine: Engine, shard: Path, bags: list[Bag]) -> Contender:
    """Build an engine in a process of its own, and enter it."""
    _say(f"building {name}")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_build, args=(engine, shard, theirs))
    process.start()
    theirs.close()
    seconds, memory = ours.recv()
    process.join()
    begin = time.perf_counter()
    index = engine.index
    opened = 1000 * (time.perf_counter() - begin)
    engine.search(bags[0], K)  # loads what is compiled
    return Contender(
        name,
        lambda query: [hit.id for hit in engine.search(bags[query], K)],
        lambda queries: [[hit.id for hit in hits] for hits in engine.search_batch([bags[q] for q in queries], K)],
        engine.bytes(), len(bags), len(bags),
        {"build_s": seconds, "build_memory_mb": memory, "open_ms": opened, "segments": len(index.segments)},
    )  # fmt: skip


def _build(engine: Engine, shard: Path, answer) -> None:
    begin = time.perf_counter()
    engine.build(read_shards([shard]))
    seconds = time.perf_counter() - begin
    answer.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def race(contenders: list[Contender], rounds: int, queries: int) -> None:
    """Time all contenders in turn, each round another share of the queries for those that do not do all of them."""
    for number in range(-1, rounds):  # the first round warms up
        for contender in contenders if number % 2 else contenders[::-1]:
            if contender.one is not None:
                begin = time.perf_counter()
                times = []
                for query in range(contender.single):
                    start = time.perf_counter()
                    contender.one((query + max(number, 0) * contender.single) % queries)
                    times.append(time.perf_counter() - start)
                if number >= 0:
                    contender.rates["single"].append(contender.single / (time.perf_counter() - begin))
                    contender.times += times
            if contender.many is not None:
                begin = time.perf_counter()
                for first in range(0, contender.batch, BATCH):
                    contender.many(list(range(first, min(first + BATCH, contender.batch))))
                if number >= 0:
                    contender.rates["batch"].append(contender.batch / (time.perf_counter() - begin))


def rows_of(contenders: list[Contender], documents: int) -> list[dict]:
    """A row per contender, with ratios to flat single queries and to batched dense products."""
    rate = lambda contender, kind: statistics.median(contender.rates[kind]) if contender.rates[kind] else None
    flat = next(contender for contender in contenders if contender.one is not None and contender.many is None)
    product = next(contender for contender in contenders if contender.one is None)
    rows = []
    for contender in contenders:
        single, batch = rate(contender, "single"), rate(contender, "batch")
        times = sorted(contender.times)
        rows.append(
            {
                "engine": contender.name,
                "documents": documents,
                "qps": single if single is not None else batch,
                "p50_ms": 1000 * statistics.median(times) if times else None,
                "p99_ms": 1000 * times[min(len(times) - 1, int(0.99 * len(times)))] if times else None,
                "bytes": contender.bytes,
                "recall@10": contender.facts["recall@10"],
                "faster_than_flat": (single or batch) / rate(flat, "single"),
                "smaller_than_flat": flat.bytes / contender.bytes,
                "batch_qps": batch,
                "batch_faster_than_product": batch / rate(product, "batch") if batch else None,
                "bytes_per_document": contender.bytes / documents,
                **contender.facts,
            }
        )
    return rows


def recall(found: list[list], truth: list[list]) -> float:
    """Share of the best ones that were found; a query with fewer than ten counts its own."""
    shares = [len(set(ids) & set(best)) / len(best) for ids, best in zip(found, truth) if best]
    return statistics.fmean(shares)


def print_table(rows: list[dict], data: SyntheticSet) -> None:
    """The rows, and the machine they are from."""
    print(f"\n{'':36}{'qps':>9}{'p50 ms':>9}{'p99 ms':>9}{'MB':>9}{'recall':>8}{'faster':>9}{'smaller':>9}{'batch qps':>11}{'x product':>11}")  # fmt: skip  # noqa: E501
    for row in rows:
        cells = [
            f"{row['qps']:,.1f}", _cell(row["p50_ms"], 3), _cell(row["p99_ms"], 3), f"{row['bytes'] / 1e6:,.1f}",
            f"{row['recall@10']:.4f}",
        ]  # fmt: skip
        print(
            f"{row['engine']:36}" + "".join(f"{cell:>{8 if place == 4 else 9}}" for place, cell in enumerate(cells))
            + f"{row['faster_than_flat']:9,.1f}{row['smaller_than_flat']:9.1f}"
            + f"{_cell(row['batch_qps'], 1):>11}{_cell(row['batch_faster_than_product'], 1):>11}"
        )  # fmt: skip
    for row in rows:
        if "build_s" in row:
            print(
                f"{row['engine']}: built in {row['build_s']:.1f} s with {row['build_memory_mb']:,.0f} MB, opened in "
                f"{row['open_ms']:.1f} ms, {row['bytes_per_document']:.2f} bytes a document"
            )
    print(f"{data}; one thread, {platform.processor() or platform.machine()}, Python {platform.python_version()}")


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--synthetic", type=int, choices=sorted(SYNTHETIC), required=True, help="terms a document")
    parser.add_argument("--docs", type=int, default=1_000_000, help="documents")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--impact-bits", type=int, nargs="+", default=[9], help="of the index; several give a row each")
    parser.add_argument("--work", help="folder for vectors and indexes, removed afterwards; the system's by default")
    parser.add_argument("--json", help="write the rows to this file")
    return parser


if __name__ == "__main__":
    main()
