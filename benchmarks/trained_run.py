"""The large-scale benchmark on a trained model's vectors: text to image and image to text, among more and more others.

For each direction and number of distractors: our index over vectors cut to their heaviest terms, and uncut; dense
vectors in Faiss and in batched products; BM25 over captions; every other engine that is installed.

R@1, 5, 10 are the share of queries whose right document is among the first so many found. Queries are cut as the
documents are. Where a pass over all queries would take longer than `--recall-seconds`, fewer are taken, evenly, and the
row says how many.

Without a dense model, the dense vectors are the uncut lexicon vectors projected on their 512 main directions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from contenders import BATCH, Contender, K, enter, race, rates, say
from dense_engines import WIDTH, FaissEngine, FlatVectors
from text_engines import BM25, right_captions
from trained_set import TrainedSet, cut

from lexlip.files import write_json
from lexlip.index import SparseRows, read_shards, write_shard
from lexlip.index.adapters import open_engine
from lexlip.index.engine import Bag, LexLIPEngine
from lexlip.recall import CUTOFFS

DIRECTIONS = {"text to image": ("captions", "pictures"), "image to text": ("pictures", "captions")}
TOP_K = (8, 16, 32, 64, 128)
_FEW = 10_000  # documents below which a product quantiser has too little to learn from
_LARGE = 500_000  # documents from which on what an index needs to be built says something
_PROJECTED_FROM = 4000  # vectors of each kind whose main directions are taken


@dataclass(frozen=True)
class Task:
    """One direction among one number of distractors.

    Attributes:
        direction: a key of DIRECTIONS.
        distractors: how many.
        documents: with the val documents.
        bags: the queries, uncut.
        right: of each query the numbers of the right documents.
    """

    direction: str
    distractors: int
    documents: int
    bags: list[Bag]
    right: list[set[int]]

    @property
    def gallery(self) -> str:
        return DIRECTIONS[self.direction][1]


def run(data: TrainedSet, options: argparse.Namespace, folder: Path) -> list[dict]:
    """Rows of all directions and numbers of distractors; written after each, as all may take hours."""
    rows: list[dict] = []
    projection = main_directions(data) if "dense" in options.engines else None
    for direction, (asked, gallery) in DIRECTIONS.items():
        if direction.split()[0] not in options.directions:
            continue
        bags, count = data.queries(asked), len(data.ids(gallery))
        for distractors in options.distractors:
            right = [{document + distractors for document in documents} for documents in data.right[gallery]]
            task = Task(direction, distractors, count + distractors, bags, right)
            place = folder / f"{gallery}-{distractors}"
            place.mkdir()
            rows += _rows(data, task, options, place, projection)
            if options.json:
                write_json(rows, options.json)
    return rows


def _rows(data: TrainedSet, task: Task, options: argparse.Namespace, folder: Path, projection) -> list[dict]:
    say(f"{task.direction}, {task.distractors:,} distractors")
    contenders = list(_sparse(data, task, options, folder))
    flat = None
    if projection is not None:
        flat = _dense(data, task, projection)
        contenders += _dense_contenders(flat, options, folder, task)
    for contender in contenders:
        measure_recall(contender, task.right, options)
    others = sum(count for _, count in data.sources["captions"])
    if "bm25" in options.engines and task.gallery == "pictures" and task.distractors <= others and BM25.is_installed():
        contenders.append(_bm25(data, task, folder, options))
    race(contenders, options.rounds, len(task.bags))
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
        if k == options.adapter_top_k and task.documents <= options.adapter_documents:
            for name in options.adapters:
                other = open_engine(name, str(folder / name))
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
    samples = [next(data.rows(kind, 0)) for kind in ("pictures", "captions")]
    samples += [next(read_shards(data.folders[kind][1:2])) for kind in ("pictures", "captions") if data.sources[kind]]
    words = 1 + max(int(rows.terms.max()) for kind in data.folders for rows in read_shards(data.folders[kind]))
    dense = torch.cat([_dense_rows(rows, words)[:_PROJECTED_FROM] for rows in samples])
    torch.manual_seed(0)
    return torch.svd_lowrank(dense, q=min(WIDTH, *dense.shape), niter=4)[2]


def _dense_rows(rows: SparseRows, words: int) -> torch.Tensor:
    dense = torch.zeros(len(rows), words)
    place = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    dense[torch.from_numpy(place), torch.from_numpy(rows.terms.astype(np.int64))] = torch.from_numpy(
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


def _dense(data: TrainedSet, task: Task, directions: torch.Tensor) -> FlatVectors:
    say("dense vectors")
    asked = np.concatenate([project(rows, directions) for rows in data.rows(DIRECTIONS[task.direction][0], 0)])
    return FlatVectors((project(rows, directions) for rows in data.rows(task.gallery, task.distractors)), asked)


def _dense_contenders(flat: FlatVectors, options: argparse.Namespace, folder: Path, task: Task) -> Iterator[Contender]:
    product = lambda queries: flat.product(queries, K)
    yield Contender(flat.name, lambda query: flat.search(query, K), None, flat.bytes(), role="flat", pass_by=product)
    name = f"matrix product, {flat.width}-d, batches of {BATCH}"
    yield Contender(name, None, product, flat.bytes(), role="product")
    for kind in FaissEngine.KINDS:
        few = kind == "IVF-PQ" and task.documents < _FEW
        if kind in options.engines and not few and (kind != "HNSW" or task.documents <= options.hnsw_documents):
            say(kind)
            engine = FaissEngine(kind, flat)
            yield Contender(
                engine.name, lambda query, engine=engine: engine.search(query, K),
                lambda queries, engine=engine: engine.search_batch(queries, K), engine.bytes(folder),
                facts={"build_s": engine.build_s},
            )  # fmt: skip


def _bm25(data: TrainedSet, task: Task, folder: Path, options: argparse.Namespace) -> Contender:
    """Captions instead of pictures: each val caption looks for the other captions of its picture."""
    say("bm25s")
    texts = data.texts(task.distractors)
    engine = BM25(texts, range(task.distractors, len(texts)), folder / "bm25")
    contender = Contender(
        f"{engine.name}, which pictures have not", lambda query: engine.search(query, K),
        lambda queries: engine.search_batch(queries, K), engine.bytes,
    )  # fmt: skip
    measure_recall(contender, right_captions(data.right["pictures"], task.distractors), options)
    return contender


def measure_recall(contender: Contender, right: list[set[int]], options: argparse.Namespace) -> None:
    """R@1, 5, 10 in percent, over all queries or as many as the time allows; also sets how many a round times."""
    many = contender.pass_by or contender.many or (lambda queries: [contender.one(query) for query in queries])
    count = len(right)
    tried = np.linspace(0, count - 1, min(count, 20)).astype(int).tolist()
    many(tried)
    begin = time.perf_counter()
    many(tried)
    each = (time.perf_counter() - begin) / len(tried)
    asked = np.linspace(0, count - 1, min(count, max(100, int(options.recall_seconds / each)))).astype(int)
    found: list[list] = []
    for first in range(0, len(asked), BATCH):
        found += many(asked[first : first + BATCH].tolist())
    for cutoff in CUTOFFS:
        hits = [bool(right[query] & set(ids[:cutoff])) for query, ids in zip(asked.tolist(), found)]
        contender.facts[f"R@{cutoff}"] = round(100 * float(np.mean(hits)), 2)
    contender.facts["queries"] = len(asked)
    if contender.one is not None:
        begin = time.perf_counter()
        for query in tried[:5]:
            contender.one(query)
        alone = (time.perf_counter() - begin) / len(tried[:5])
        contender.single = max(5, min(count, 1000, int(options.round_seconds / alone)))
    if contender.many is not None:
        contender.batch = max(BATCH, min(count, 1000, int(options.round_seconds / each)) // BATCH * BATCH)
