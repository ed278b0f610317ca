"""How bytes, build time, memory and speed of the index grow with the collection: the numbers behind docs/SCALING.md.

    python benchmarks/scaling.py --terms 16 --documents 250000 1000000 4000000 --json rows.json
    python benchmarks/scaling.py --engines lexlip milvus qdrant seismic --documents 100000

The synthetic sets of `benchmarks/large_scale.py`. Every size is built in a process of its own. Single queries on one
thread, the median and the mean over all of them; sizes and engines take turns in rounds, so that a busy machine slows
all alike. Memory while searching is what the process grew by, the index's own pages included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _one_thread  # noqa: F401
import checkout
from bmp_engine import BMPEngine
from contenders import K, build_apart, close, path_of
from memory import memory_of
from retrieval_sets import SYNTHETIC, SyntheticSet, synthetic

from lexlip.index import Index, write_shard
from lexlip.index.adapters import open_engine
from lexlip.index.engine import Engine
from lexlip.utils.files import write_json


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run the benchmark; returns the rows that it prints and writes."""
    options = _parser().parse_args(arguments)
    rows, engines = [], []
    with tempfile.TemporaryDirectory(dir=options.work, prefix="scaling-") as folder:
        shard = Path(folder) / "vectors.arrow"
        for documents in sorted(options.documents):
            data = synthetic(options.terms, documents, options.queries)
            write_shard(shard, data.batches())
            for name in options.engines:
                here = Path(folder) / str(documents)
                here.mkdir(exist_ok=True)
                path = path_of(name, here)
                settings = {"options": {"segment_documents": options.segment_documents}} if name == "lexlip" else {}
                built = build_apart(name, shard, _opened, name, path, **settings)
                facts = {
                    "build_s": round(built["build_s"], 1),
                    "build_mb": round(built["build_memory_mb"] * 1e6 / 2**20),
                }
                engine = _opened(name, path, **settings)
                facts["bytes_per_document"] = round(engine.bytes() / documents, 2)
                if name == "lexlip":
                    facts |= {"segments": len(engine.index.segments), "postings": _touched(engine.index, data)}
                rows.append({"engine": name, "documents": documents, "terms": options.terms, **facts})
                engines.append((engine, data.bags()))
        _race(rows, engines, options.rounds)
        if options.threads > 1:
            _together(rows, engines, options.rounds, options.threads)
        for engine, _ in engines:
            close(engine)
    for row in rows:
        print(json.dumps(row))
    if options.json:
        write_json(rows, options.json)
    return rows


def _opened(name: str, path: str, **settings) -> Engine:
    """One of the adapters, or the rival that is none."""
    return BMPEngine(path) if name == BMPEngine.name else open_engine(name, path, **settings)


def _touched(index: Index, data: SyntheticSet) -> float:
    """Postings in the lists of an average query."""
    from lexlip.index.layout import COUNT

    counts = {}
    for segment in index.segments:
        for term, count in zip(segment.terms.tolist(), segment.table[:, COUNT].tolist()):
            counts[term] = counts.get(term, 0) + count
    bags = data.bags()
    return round(sum(counts.get(int(term), 0) for terms, _ in bags for term in terms) / len(bags))


def _race(rows: list[dict], engines: list, rounds: int) -> None:
    times = [[] for _ in engines]
    for number in range(-1, rounds):  # the first round warms up
        for (engine, bags), taken, row in zip(engines, times, rows):
            if number < 0:
                engine.search(bags[0], K)  # what is compiled is no part of the index
            before = _resident()
            for bag in bags:
                begin = time.perf_counter()
                engine.search(bag, K)
                if number >= 0:
                    taken.append(time.perf_counter() - begin)
            if number < 0:
                row["search_mb"] = round((_resident() - before) / 2**20, 1)
    for taken, row in zip(times, rows):
        row["p50_ms"] = round(1000 * statistics.median(taken), 3)
        row["mean_ms"] = round(1000 * statistics.mean(taken), 3)


def _together(rows: list[dict], engines: list, rounds: int, threads: int) -> None:
    """Queries per second of several threads and of one, each the median of the rounds, and how many times more."""
    rates: list[dict[int, list[float]]] = [{1: [], threads: []} for _ in engines]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            for (engine, bags), rate in zip(engines, rates):
                for count, found in rate.items():
                    parts = [bags[n::count] for n in range(count)]
                    begin = time.perf_counter()
                    list(pool.map(lambda part, engine=engine: [engine.search(bag, K) for bag in part], parts))
                    found.append(len(bags) / (time.perf_counter() - begin))
    for row, rate in zip(rows, rates):
        one, many = (statistics.median(rate[count]) for count in (1, threads))
        row |= {"qps": round(one), f"qps_{threads}_threads": round(many), "times": round(many / one, 2)}


def _resident() -> int:
    """Resident bytes of this process, 0 where the system does not tell."""
    try:
        return memory_of("self", "VmRSS")
    except OSError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, choices=sorted(SYNTHETIC), default=16, help="per document")
    parser.add_argument("--documents", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--engines", nargs="+", default=["lexlip"], help="see lexlip.index.adapters; or bmp")
    parser.add_argument("--segment-documents", type=int, default=1 << 22, help="of lexlip")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="also the queries per second of so many at once")
    parser.add_argument("--work", type=Path, help="folder for what is built (default: the system's)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


if __name__ == "__main__":
    checkout.run(main)
