"""Recall of a COCO-5K-sized test, both directions: the sparse product against the dense one.

    python benchmarks/evaluate.py --json evaluate.json

5,000 images and 25,010 captions with 128 active terms each, drawn as often as a natural language uses its words (or
evenly with --skew 0), so that a caption and its image share some. The ranks of a tenth of the test must equal those of
a dense float64 product; the dense path that is timed is float32, as evaluations usually are.
"""

from __future__ import annotations

import functools

import checkout
import harness
import numpy as np
import torch
from harness import Options, Subject

from lexlip.evaluate.recall import SparseVectors, best_ranks

SIZES = ("pictures", "captions", "terms", "vocab", "skew")


def vectors(rng: np.random.Generator, ids: np.ndarray, topics: np.ndarray, sizes: dict) -> SparseVectors:
    """Rows of sizes["terms"] distinct terms each, a quarter of them from the image's own topic."""
    rows, terms, vocab = len(ids), sizes["terms"], sizes["vocab"]
    chance = 1 / np.arange(1, vocab + 1) ** sizes["skew"]
    edges = np.cumsum(chance / chance.sum())
    drawn = np.empty((rows, terms), np.int32)
    for row, topic in enumerate(topics[ids]):
        own = rng.choice(topic, terms // 4, replace=False)
        others, count = np.empty(0, np.int64), 2 * terms
        while len(others) < terms - len(own):
            more = np.searchsorted(edges, rng.random(count)).clip(max=vocab - 1)
            others, count = np.setdiff1d(more, own), 2 * count
        drawn[row] = np.sort(np.concatenate([own, rng.choice(others, terms - len(own), replace=False)]))
    weights = rng.random((rows, terms), np.float32) + 0.01
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    offsets = np.arange(0, rows * terms + 1, terms)
    return SparseVectors(ids, offsets, drawn.ravel(), weights.ravel(), order=np.arange(rows), vocab=vocab)


@functools.lru_cache(maxsize=2)
def test_set(images: int, captions: int, terms: int, vocab: int, skew: float) -> tuple[SparseVectors, SparseVectors]:
    """(images, texts), seeded."""
    rng, sizes = np.random.default_rng(0), {"terms": terms, "vocab": vocab, "skew": skew}
    topics = np.stack([rng.choice(vocab, terms, replace=False) for _ in range(images)])
    texts = np.arange(captions) % images
    return vectors(rng, np.arange(images), topics, sizes), vectors(rng, texts, topics, sizes)


def dense_ranks(texts: SparseVectors, images: SparseVectors, dtype: torch.dtype) -> list[torch.Tensor]:
    """The reference: every vector dense, one product, one comparison per direction."""
    scores = texts.columns().T.to(dtype) @ images.columns().to(dtype)
    right = torch.from_numpy(texts.ids)[:, None] == torch.from_numpy(images.ids)[None, :]
    ranks = []
    for dim in (1, 0):
        best = scores.masked_fill(~right, -torch.inf).amax(dim, keepdim=True)
        ranks.append(1 + (~(scores < best) & ~right).sum(dim))
    return ranks


def build(which: str, options: Options) -> Subject:
    images, texts = test_set(*(options.more[name] for name in SIZES))
    if which == "fast":
        return Subject(lambda: [torch.from_numpy(ranks) for ranks in best_ranks(texts, images)])
    return Subject(lambda: dense_ranks(texts, images, torch.float32))


def different_ranks(options: Options) -> int:
    """How many ranks of the first tenth of the images and their captions differ from the dense float64 product's."""
    images, texts = test_set(*(options.more[name] for name in SIZES))
    images = images.take(np.arange(max(1, len(images) // 10)))
    texts = texts.take(np.flatnonzero(np.isin(texts.ids, images.ids)))
    pairs = zip(best_ranks(texts, images), dense_ranks(texts, images, torch.float64), strict=True)
    return int(sum((ours != theirs.numpy()).sum() for ours, theirs in pairs))


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=3, device="cpu")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25010)
    parser.add_argument("--terms", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=30522)
    parser.add_argument("--skew", type=float, default=0.8, help="exponent of the terms' frequencies; 0: all alike")
    options = harness.options(parser, arguments)
    if options.cuda or options.dtype != "float32":
        parser.error("recall runs on the CPU, in float32")
    row = harness.compare("recall, both directions", build, options, resident=True)
    row |= {name: options.more[name] for name in SIZES} | {"different_ranks_of_a_tenth": different_ranks(options)}
    row["agrees"] = row["different_ranks_of_a_tenth"] == 0
    row["notes"] = [f"{row['different_ranks_of_a_tenth']} other ranks than float64 in a tenth"]
    harness.report([row], options)
    return [row]


if __name__ == "__main__":
    checkout.run(main)
