"""The large-scale benchmark on a trained model's vectors: text to image and image to text, among more and more others.

For each direction and number of distractors: our index over vectors cut to their heaviest terms, and uncut; dense
vectors in Faiss and in batched products; BM25 over captions; every other engine that is installed.

R@1, 5, 10 are the ratios of queries whose right document is among the first 1, 5, 10 results. A direction's queries are
a random sample of `--queries` val documents, the same for every engine and every number of distractors; engines are
timed on as many of them, from the first on, as `--round-seconds` allows. Queries are cut as the documents are.

The flat dense rows, to which ratios are, hold the uncut lexicon vectors projected on their 512 main directions. With
`--dense-model` there are also rows of that model's own vectors, in their own width.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bmp_engine import BMPEngine
from contenders import BATCH, Contender, K, enter, path_of, race, rates, say
from dense_engines import WIDTH, FaissEngine, FlatVectors
from dense_set import DenseSet
from text_engines import BM25, right_captions
from trained_set import SEED, TrainedSet, cut, numbered

from lexlip.evaluate.recall import CUTOFFS
from lexlip.index import SparseRows, read_shards, write_shard
from lexlip.index.adapters import open_engine
from lexlip.index.engine import Bag, LexLIPEngine
from lexlip.utils.files import write_json

DIRECTIONS = {"text to image": ("captions", "images"), "image to text": ("images", "captions")}
TOP_K = (8, 16, 32, 64, 128)
_FEW = 10_000  # documents below which a product quantiser has too little to learn from
_LARGE = 500_000  # documents from which on the time and memory of a build say something
_PROJECTED_FROM = 4000  # val documents of each kind, and as many distractors, whose main directions are taken


@dataclass(frozen=True)
class Task:
    """One direction among one number of distractors.

    Attributes:
        direction: a key of DIRECTIONS.
        distractors: how many.
        documents: with the val documents.
        queries: of each query the number of its val document.
        bags: the queries, uncut.
        right: of each query the numbers of the right documents.
    """

    direction: str
    distractors: int
    documents: int
    queries: np.ndarray
    bags: list[Bag]
    right: list[set[int]]

    @property
    def gallery(self) -> str:
        return DIRECTIONS[self.direction][1]


def run(data: TrainedSet, dense: DenseSet | None, options: argparse.Namespace, folder: Path) -> list[dict]:
    """Rows of all directions and numbers of distractors; written after each, as all may take hours."""
    rows: list[dict] = []
    projection = main_directions(data) if "dense" in options.engines else None
    for direction, (kind, gallery) in DIRECTIONS.items():
        if direction.split()[0] not in options.directions:
            continue
        bags, count = data.queries(kind), len(data.ids(gallery))
        chosen = sample(len(bags), options.queries)
        first = ", ".join(map(str, chosen[:5]))
        say(f"{direction}: {len(chosen):,} of {len(bags):,} queries, the same for every engine, from {first} on")
        bags = [bags[query] for query in chosen]
        for distractors in options.distractors:
            right = [{document + distractors for document in data.right[gallery][query]} for query in chosen]
            task = Task(direction, distractors, count + distractors, chosen, bags, right)
            work = folder / f"{gallery}-{distractors}"
            work.mkdir()
            rows += _rows(data, dense, task, options, work, projection)
            if options.json:
                write_json(rows, options.json)
    return rows


def sample(count: int, wanted: int) -> np.ndarray:
    """Numbers of the queries that are used: of `count` at most `wanted`, in a random order that is always the same."""
    return np.random.default_rng([SEED, 2]).permutation(count)[:wanted]


def _rows(
    data: TrainedSet, dense: DenseSet | None, task: Task, options: argparse.Namespace, folder: Path,
    projection: torch.Tensor | None,
) -> list[dict]:  # fmt: skip
    say(f"{task.direction}, {task.distractors:,} distractors")
    contenders = list(_sparse(data, task, options, folder))
    if projection is not None:
        flat = _projected(data, task, projection)
        contenders += _flat_contenders(flat)
        contenders += _faiss_contenders(flat, options, folder, task)
    if dense is not None:
        say("vectors of the dense model")
        queries = dense.queries(DIRECTIONS[task.direction][0])[task.queries]
        own = FlatVectors(dense.rows(task.gallery, task.distractors), queries)
        contenders += _flat_contenders(own, "dense model, ")
    for contender in contenders:
        measure_recall(contender, task.right, options)
    uncut = contenders[0]
    for contender in contenders:
        if contender is not uncut and "top_k" in contender.facts:
            measure_loss(contender, uncut)
    if "bm25" in options.engines and task.gallery == "images" and BM25.is_installed():
        others = sum(count for _, count in data.sources["captions"])
        if task.distractors <= others:
            contenders.append(_bm25(data, task, folder, options))
        else:
            say(f"bm25s left out: {task.distractors:,} distractors, but {others:,} captions were encoded")
    race(contenders, options.rounds, len(task.bags))
    for contender in contenders:
        contender.close()
    return rates(contenders, task.documents, {"direction": task.direction, "distractors": task.distractors})


def _sparse(data: TrainedSet, task: Task, options: argparse.Namespace, folder: Path) -> Iterator[Contender]:
    """Our index, uncut and cut: each shard is cut from the one before."""
    shard = folder / "all.arrow"
    say("vectors")
    write_shard(shard, data.rows(task.gallery, task.distractors))
    for k in [None, *sorted(options.top_k, reverse=True)]:
        bags = task.bags
        if k is not None:
            before, shard = shard, folder / f"{k}.arrow"
            write_shard(shard, (cut(rows, k) for rows in read_shards([before])))
            before.unlink()
            bags = [cut_bag(bag, k) for bag in bags]
        terms = f"{k} terms" if k is not None else "all terms"
        engine = LexLIPEngine(folder / f"index-{k}", {"impact_bits": options.impact_bits[0]})
        yield enter(f"lexlip, {terms}", engine, shard, bags, {"top_k": k}, apart=task.documents >= _LARGE)
        for drop in options.drop if k is None else ():
            yield _dropping(engine, bags, drop)
        if k is not None and BMPEngine.name in options.engines and BMPEngine.is_installed():
            yield enter(f"bmp, {terms}", BMPEngine(folder / f"bmp-{k}"), shard, bags, {"top_k": k}, apart=False)
        if k == options.adapter_top_k and task.documents <= options.adapter_documents:
            for name in options.adapters:
                other = open_engine(name, path_of(name, folder))
                yield enter(f"{name}, {terms}", other, shard, bags, {"top_k": k}, apart=False)


def _dropping(engine: LexLIPEngine, bags: list[Bag], drop: float) -> Contender:
    """The same index, with the terms left out that add least."""
    search = lambda queries: [
        [hit.id for hit in hits]
        for hits in engine.index.search_batch([bags[query] for query in queries], K, drop=drop, threads=1)
    ]
    return Contender(
        f"lexlip, all terms, drop {drop:g}", lambda query: search([query])[0], search, engine.bytes(),
        facts={"top_k": None, "drop": drop},
    )  # fmt: skip


def cut_bag(bag: Bag, k: int) -> Bag:
    """A query's k heaviest terms."""
    terms, weights = bag
    kept = np.sort(np.lexsort((terms, -weights))[:k])
    return terms[kept], weights[kept]


def main_directions(data: TrainedSet) -> torch.Tensor:
    """(V, W) onto which lexicon vectors of both kinds are projected, so that products of two change least."""
    say(f"{WIDTH} main directions")
    samples = []
    for folders in data.folders.values():  # the val documents, and the first kind of distractors
        samples += [rows for folder in folders[:2] for rows in _first(folder, _PROJECTED_FROM)]
    dense = torch.cat([_dense_rows(rows, data.vocabulary) for rows in samples])
    torch.manual_seed(0)
    return torch.svd_lowrank(dense, q=min(WIDTH, *dense.shape), niter=4)[2]


def _first(folder: Path, count: int) -> Iterator[SparseRows]:
    for rows in read_shards([folder]):
        yield numbered(rows, 0, count)
        count -= len(rows)
        if count <= 0:
            return


def _dense_rows(rows: SparseRows, vocabulary: int) -> torch.Tensor:
    dense = torch.zeros(len(rows), vocabulary)
    row = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    dense[torch.from_numpy(row), torch.from_numpy(rows.terms.astype(np.int64))] = torch.from_numpy(
        rows.weights.astype(np.float32)
    )
    return dense


def project(rows: SparseRows, directions: torch.Tensor) -> np.ndarray:
    """(N, W) float32 of length 1."""
    vectors = torch.nn.functional.embedding_bag(
        torch.from_numpy(rows.terms.astype(np.int64)), directions, torch.from_numpy(rows.offsets[:-1]), mode="sum",
        per_sample_weights=torch.from_numpy(rows.weights.astype(np.float32)),
    )  # fmt: skip
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def _projected(data: TrainedSet, task: Task, directions: torch.Tensor) -> FlatVectors:
    say("dense vectors")
    queries = np.concatenate([project(rows, directions) for rows in data.rows(DIRECTIONS[task.direction][0], 0)])
    rows = (project(rows, directions) for rows in data.rows(task.gallery, task.distractors))
    return FlatVectors(rows, queries[task.queries])


def _flat_contenders(flat: FlatVectors, model: str = "") -> Iterator[Contender]:
    """Single queries and batches over the same vectors; ratios are to those that are no other model's own."""
    product = lambda queries: flat.product(queries, K)
    single, batch = ("", "") if model else ("flat", "product")
    search = lambda query: flat.search(query, K)
    yield Contender(model + flat.name, search, None, flat.bytes(), role=single, pass_by=product)
    name = f"{model}matrix product, {flat.width}-d, batches of {BATCH}"
    yield Contender(name, None, product, flat.bytes(), role=batch)


def _faiss_contenders(flat: FlatVectors, options: argparse.Namespace, folder: Path, task: Task) -> Iterator[Contender]:
    for kind in FaissEngine.KINDS:
        few = kind == "IVF-PQ" and task.documents < _FEW
        if kind in options.engines and not few and (kind != "HNSW" or task.documents <= options.hnsw_documents):
            say(kind)
            engine = FaissEngine(kind, flat)
            size = engine.bytes(folder)
            for effort in engine.efforts:
                yield Contender(
                    engine.name(effort),
                    lambda query, engine=engine, effort=effort: engine.search(query, K, effort),
                    lambda queries, engine=engine, effort=effort: engine.search_batch(queries, K, effort),
                    size, facts={"build_s": engine.build_s},
                )  # fmt: skip


def _bm25(data: TrainedSet, task: Task, folder: Path, options: argparse.Namespace) -> Contender:
    """Captions instead of images: each query caption looks for the other captions of its image."""
    say("bm25s")
    engine = BM25(data.texts(task.distractors), (task.queries + task.distractors).tolist(), folder / "bm25")
    contender = Contender(
        f"{engine.name}, which images would need", lambda query: engine.search(query, K),
        lambda queries: engine.search_batch(queries, K), engine.bytes,
    )  # fmt: skip
    right = right_captions(data.right["images"], task.distractors)
    measure_recall(contender, [right[query] for query in task.queries], options)
    return contender


def measure_recall(contender: Contender, right: list[set[int]], options: argparse.Namespace) -> None:
    """R@1, 5, 10 in percent over all queries; also sets how many of them a round times."""
    many = contender.pass_by or contender.many or (lambda queries: [contender.one(query) for query in queries])
    count = len(right)
    tried = list(range(min(count, 20)))
    many(tried)  # loads what is read on first use
    begin = time.perf_counter()
    results: list[list] = []
    for first in range(0, count, BATCH):
        results += many(list(range(first, min(first + BATCH, count))))
    each = (time.perf_counter() - begin) / count
    for cutoff in CUTOFFS:
        hits = np.array([bool(wanted & set(ids[:cutoff])) for wanted, ids in zip(right, results)])
        contender.facts[f"R@{cutoff}"] = round(100 * float(hits.mean()), 2)
        if cutoff == 1:
            contender.first = hits
    contender.facts["queries"] = count
    if contender.one is not None:
        begin = time.perf_counter()
        for query in tried[:5]:
            contender.one(query)
        alone = (time.perf_counter() - begin) / len(tried[:5])
        contender.single = max(5, min(count, 1000, int(options.round_seconds / alone)))
    if contender.many is not None:
        contender.batch = max(BATCH, min(count, 1000, int(options.round_seconds / each)) // BATCH * BATCH)


def measure_loss(contender: Contender, uncut: Contender) -> None:
    """Points of R@1 lost against uncut vectors, and their standard error: the same queries are compared."""
    lost = 100 * (uncut.first.astype(float) - contender.first)
    contender.facts["R@1 lost"] = round(float(lost.mean()), 2)
    contender.facts["R@1 lost, error"] = round(float(lost.std() / np.sqrt(len(lost))), 2)
