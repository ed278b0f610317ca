"""Engines that race: each builds, then all are timed in turn, so that a busy machine slows all of them.

Single queries are timed one by one through the engine's public interface, as a caller waits for them. Rates are medians
over the rounds, of single queries and of batches.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from memory import own_peak

from lexlip.index import read_shards
from lexlip.index.engine import Bag, Engine, LexLIPEngine

K = 10
BATCH = 100


@dataclass
class Contender:
    """An engine in the race.

    Attributes:
        name: in the table.
        one: from a query's number to the ids of its results; None where another contender does single queries.
        many: the same for a batch; None where another contender does batches.
        bytes: on disk.
        single, batch: how many queries a round times, one by one and in batches.
        facts: further columns.
        role: "flat" or "product", which ratios are to; "" for others.
        pass_by: gives the same as `one`, faster, where all queries are run once; None: `many` does.
        first: of each query, whether its first result is a right one; None where it is not measured.
        close: releases what it holds, after the last query.
        times: seconds of each single query.
        rates: queries per second of each round, single and batched.
    """

    name: str
    one: Callable[[int], list] | None
    many: Callable[[list[int]], list[list]] | None
    bytes: int
    single: int = 5
    batch: int = BATCH
    facts: dict = field(default_factory=dict)
    role: str = ""
    pass_by: Callable[[list[int]], list[list]] | None = None
    first: np.ndarray | None = None
    close: Callable[[], None] = lambda: None
    times: list[float] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=lambda: {"single": [], "batch": []})


def enter(
    name: str, engine: Engine, shard: Path, bags: list[Bag], facts: dict | None = None, apart: bool = True
) -> Contender:
    """Build an engine over a shard, and open it.

    Args:
        apart: in a process of its own, whose largest memory, libraries included, is then a column.
    """
    say(f"building {name}")
    if apart:
        built = build_apart(name, shard, copy.copy, engine)
    else:
        begin = time.perf_counter()
        engine.build(read_shards([shard]))
        built = {"build_s": time.perf_counter() - begin}
    facts = {**(facts or {}), **built}
    if isinstance(engine, LexLIPEngine):
        begin = time.perf_counter()
        index = engine.index
        facts.update(open_ms=1000 * (time.perf_counter() - begin), segments=len(index.segments))
    engine.search(bags[0], K)  # loads what is compiled
    return Contender(
        name,
        lambda query: [hit.id for hit in engine.search(bags[query], K)],
        lambda queries: [[hit.id for hit in hits] for hits in engine.search_batch([bags[q] for q in queries], K)],
        engine.bytes(), len(bags), len(bags), facts, close=lambda: close(engine),
    )  # fmt: skip


def build_apart(name: str, shard: Path, make: Callable[..., Engine], *arguments, **options) -> dict:
    """Build what `make(*arguments, **options)` gives in a process of its own; its seconds and its largest memory."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_build, args=(shard, theirs, make, arguments, options))
    process.start()
    theirs.close()
    try:
        seconds, memory = ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{name}: its build ended with status {process.exitcode}") from None
    process.join()
    return {"build_s": seconds, "build_memory_mb": memory}


def _build(shard: Path, answer, make: Callable[..., Engine], arguments: tuple, options: dict) -> None:
    engine = make(*arguments, **options)
    begin = time.perf_counter()
    engine.build(read_shards([shard]))
    seconds = time.perf_counter() - begin
    close(engine)
    answer.send((seconds, own_peak() / 1e6))


def close(engine: Engine) -> None:
    """Let its files go, where it holds any."""
    if hasattr(engine, "close"):
        engine.close()


def path_of(name: str, folder: Path) -> str:
    """Where an adapter keeps its index."""
    return str(folder / f"{name}.db") if name == "milvus" else str(folder / name)


def race(contenders: list[Contender], rounds: int, queries: int) -> None:
    """Time all contenders in turn; those that do only some of the queries do others in each round."""
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
                    contender.many([query % queries for query in range(first, min(first + BATCH, contender.batch))])
                if number >= 0:
                    contender.rates["batch"].append(contender.batch / (time.perf_counter() - begin))


def rates(contenders: list[Contender], documents: int, facts: dict | None = None) -> list[dict]:
    """A row per contender, with ratios to flat single queries and to batched dense products where those take part."""
    rate = lambda contender, kind: statistics.median(contender.rates[kind]) if contender.rates[kind] else None
    flat = next((contender for contender in contenders if contender.role == "flat"), None)
    product = next((contender for contender in contenders if contender.role == "product"), None)
    rows = []
    for contender in contenders:
        single, batch = rate(contender, "single"), rate(contender, "batch")
        times = sorted(contender.times)
        rows.append(
            {
                "engine": contender.name,
                **(facts or {}),
                "documents": documents,
                "qps": single if single is not None else batch,
                "p50_ms": 1000 * statistics.median(times) if times else None,
                "p99_ms": 1000 * times[min(len(times) - 1, int(0.99 * len(times)))] if times else None,
                "bytes": contender.bytes,
                "faster_than_flat": (single or batch) / rate(flat, "single") if flat else None,
                "smaller_than_flat": flat.bytes / contender.bytes if flat else None,
                "batch_qps": batch,
                "batch_faster_than_product": batch / rate(product, "batch") if batch and product else None,
                "bytes_per_document": contender.bytes / documents,
                **contender.facts,
            }
        )
    return rows


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"{time.strftime('%H:%M:%S')} {text} ...", file=sys.stderr, flush=True)
