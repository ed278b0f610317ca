"""Recall@K by ids, both directions, from vectors of any number of processes.

Vectors are kept sparse, so a COCO-sized test of 5,000 images and 25,010 captions takes tens of megabytes. Captions
stay sparse in the product too, which takes a few dense images at a time; only vectors that are nearly dense are
multiplied as such. One product serves both directions, and its images are divided among the processes.

Ranks are exact. A product in float32 decides every comparison that lies outside its rounding error; captions with a
comparison inside it are multiplied again in float64, where products of float32 numbers add up to about 1e-16. Scores
within 1e-12 are the same score, added up in another order.

A rank counts every item that scores more than the best right one, and every wrong item that scores the same: a model
that gives all items one score finds nothing.

N rows, V terms of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.evaluate.grounding import HEAVIEST, grounding
from lexlip.sparse import SparseRows, nonzero_terms
from lexlip.utils.distributed import gather_objects, rank, world_size

CUTOFFS = (1, 5, 10)
BLOCK_NUMBERS = 2**21  # of a block with sparse captions: what the processor's cache holds
DENSE_BLOCK_NUMBERS = 2**26  # of a block with dense ones
DENSE_RATIO = 1 / 4  # of the vocabulary: from here on a dense product is faster
ROUNDING = 2**-24  # of float32
TIE = 1e-12  # scores closer than this, relative to one or to the score, are the same


@dataclass(frozen=True)
class SparseVectors(SparseRows):
    """Rows in float32, of the images and captions of a test, with the (N,) int64 image id of each.

    Weights are not checked: a broken model is measured too.
    """

    order: np.ndarray = field(kw_only=True)  # (N,) int64 positions in the data set; of one position there is one row
    vocab: int = field(kw_only=True)  # V

    @staticmethod
    def from_dense(vectors: Tensor, ids: Tensor, order: Tensor) -> SparseVectors:  # type: ignore[override]
        """(N, V) vectors with their (N,) image ids and positions."""
        rows = nonzero_terms(vectors)
        return SparseVectors(ids.cpu().numpy(), *rows, order=order.cpu().numpy(), vocab=vectors.shape[1])

    @classmethod
    def concatenate(cls, parts: Sequence[SparseVectors]) -> SparseVectors:
        """Rows of all parts, one per position, in the order of their positions."""
        if not parts:
            raise ValueError("no vectors were collected: the data set is empty")
        order = np.concatenate([part.order for part in parts])
        return replace(super().concatenate(parts), order=order).take(np.unique(order, return_index=True)[1])

    def take(self, rows: np.ndarray) -> SparseVectors:
        return replace(super().take(rows), order=self.order[rows])

    def between(self, start: int, stop: int) -> SparseVectors:
        return replace(super().between(start, stop), order=self.order[start:stop])

    def gathered(self) -> SparseVectors:
        """Rows of all processes, one per position."""
        return SparseVectors.concatenate(gather_objects(self))

    def columns(self) -> Tensor:
        """(V, N) float32: all rows, dense, as columns."""
        block = torch.zeros(self.vocab, len(self))
        block[torch.from_numpy(self.terms).long(), torch.from_numpy(self.rows)] = torch.from_numpy(self.weights)
        return block

    def times(self, columns: Tensor) -> Tensor:
        """(N, n) dot products of all rows with (V, n) columns, added up in their dtype."""
        if self.nearly_dense:
            return self.columns().T.to(columns.dtype) @ columns
        terms, weights = torch.from_numpy(self.terms), torch.from_numpy(self.weights).to(columns.dtype)
        offsets = torch.from_numpy(self.offsets[:-1]).to(terms.dtype)
        return F.embedding_bag(terms, columns, offsets, mode="sum", per_sample_weights=weights)

    @property
    def nearly_dense(self) -> bool:
        """Whether most terms have a weight, as before a model has learned."""
        return len(self.terms) > DENSE_RATIO * len(self) * self.vocab

    @property
    def norms(self) -> np.ndarray:
        """(N,) L2 norms."""
        return np.sqrt(np.bincount(self.rows, self.weights.astype(np.float64) ** 2, minlength=len(self)))

    def broken(self) -> np.ndarray:
        """(N,) true where a weight is infinite or not a number."""
        return np.bincount(self.rows[~np.isfinite(self.weights)], minlength=len(self)) > 0

    def shared_terms(self, other: SparseVectors) -> float:
        """How many terms a row of this and one of the other have in common, on average.

        Times the documents of an index: the postings that a query reads.
        """
        counts = [np.bincount(rows.terms, minlength=rows.vocab).astype(float) for rows in (self, other)]
        return float(counts[0] @ counts[1]) / max(1, len(self) * len(other))

    @property
    def active_terms(self) -> float:
        """Average number of terms with a weight."""
        return len(self.terms) / max(1, len(self))


def _blocks(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive blocks of at most `step` rows, at least one."""
    step = max(1, step)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def best_ranks(texts: SparseVectors, images: SparseVectors) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, from 1, of the best right item (one with the same image id) of each query, in both directions.

    Every process must call it with the same vectors.

    Returns:
        (captions,) ranks among the images and (images,) ranks among the captions.

    Raises:
        ValueError: a caption without its image, or an image without a caption.
    """
    _check_right_items(texts, images)
    _check_right_items(images, texts)
    # Blocks of images times blocks of captions: either way the largest of both and of their product fits.
    numbers = DENSE_BLOCK_NUMBERS if texts.nearly_dense else BLOCK_NUMBERS
    at_once = numbers // texts.vocab if texts.nearly_dense else texts.vocab
    mine = list(_blocks(len(images), numbers // images.vocab))[rank() :: world_size()]
    best_text, best_image = _best_right_scores(texts, images, mine, at_once)
    best_text = np.maximum.reduce(gather_objects(best_text))
    above = gather_objects(_count_above(texts, images, mine, at_once, _bar(best_text), _bar(best_image)))
    return 1 + sum(text for text, _ in above), 1 + sum(image for _, image in above)


def _best_right_scores(texts: SparseVectors, images: SparseVectors, mine: list, at_once: int) -> tuple:
    """(captions,) and (images,) best score of a right item, exact; minus infinity where none is among mine."""
    best_text, best_image = np.full(len(texts), -np.inf), np.full(len(images), -np.inf)
    for start, stop in mine:
        block = images.between(start, stop)
        columns = block.columns().double()
        own = np.flatnonzero(np.isin(texts.ids, block.ids))
        for rows in (own[a:b] for a, b in _blocks(len(own), at_once)):
            captions = texts.take(rows)
            scores = _scores(captions, block, columns).masked_fill_(_wrong(captions, block), -torch.inf).numpy()
            best_text[rows] = np.maximum(best_text[rows], scores.max(1))
            best_image[start:stop] = np.maximum(best_image[start:stop], scores.max(0))
    return best_text, best_image


def _count_above(
    texts: SparseVectors, images: SparseVectors, mine: list, at_once: int, bar_text: Tensor, bar_image: Tensor
) -> tuple:
    """(captions,) and (images,) numbers of wrong items that are not below the query's bar."""
    # A sum of n rounded products is off by at most n roundings of the product of the norms.
    off = ROUNDING * (np.diff(texts.offsets) + 2) * texts.norms * images.norms.max()
    off = torch.from_numpy(off)[:, None]
    above_text, above_image = np.zeros(len(texts), np.int64), np.zeros(len(images), np.int64)
    for start, stop in mine:
        block = images.between(start, stop)
        columns = block.columns()
        for a, b in _blocks(len(texts), at_once):
            captions = texts.between(a, b)
            scores, wrong = _scores(captions, block, columns).double(), _wrong(captions, block)
            bars = bar_text[a:b, None], bar_image[None, start:stop]
            near = [~((scores - bar).abs() > off[a:b]) for bar in bars]
            unsure = ((near[0] | near[1]) & wrong).any(1).numpy()
            if unsure.any():
                scores[unsure] = _scores(captions.take(np.flatnonzero(unsure)), block, columns.double())
            # "Not below" rather than "at least": a score that is not a number counts against the model too.
            above_text[a:b] += (~(scores < bars[0]) & wrong).sum(1).numpy()
            above_image[start:stop] += (~(scores < bars[1]) & wrong).sum(0).numpy()
    return above_text, above_image


def _bar(best: np.ndarray) -> Tensor:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is not a number, and nothing is below that
        return torch.from_numpy(best - TIE * np.maximum(1, np.abs(best)))


def _check_right_items(queries: SparseVectors, gallery: SparseVectors) -> None:
    missing = ~np.isin(queries.ids, gallery.ids)
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(queries)} queries have no right item in the gallery, "
            f"the first at position {queries.order[missing.argmax()]}"
        )


def _scores(texts: SparseVectors, images: SparseVectors, columns: Tensor) -> Tensor:
    """(captions, images) in the columns' dtype; not a number for a broken image, whatever terms it shares."""
    return texts.times(columns).masked_fill_(torch.from_numpy(images.broken())[None, :], torch.nan)


def _wrong(texts: SparseVectors, images: SparseVectors) -> Tensor:
    """(captions, images) true where the caption belongs to another image."""
    return torch.from_numpy(texts.ids)[:, None] != torch.from_numpy(images.ids)[None, :]


def summary(ranks: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, mean and median rank."""
    metrics = {f"R@{k}": round(100.0 * float((ranks <= k).mean()), 4) for k in CUTOFFS}
    return {**metrics, "mean_rank": float(ranks.mean()), "median_rank": float(np.median(ranks))}


def retrieval_metrics(images: SparseVectors, texts: SparseVectors) -> dict:
    """Both directions of one test set, of one row per image and per caption.

    Returns:
        {"t2i": {...}, "i2t": {...}, "rsum", "active_terms": {"text", "image"}, "shared_terms", "pictures", "captions"},
        recalls in percent.
    """
    t2i, i2t = (summary(ranks) for ranks in best_ranks(texts, images))
    return {
        "t2i": t2i,
        "i2t": i2t,
        "rsum": round(sum(side[f"R@{k}"] for side in (t2i, i2t) for k in CUTOFFS), 4),
        "active_terms": {"text": texts.active_terms, "image": images.active_terms},
        "shared_terms": texts.shared_terms(images),
        "pictures": len(images),
        "captions": len(texts),
    }


def folded_metrics(images: SparseVectors, texts: SparseVectors, folds: int) -> dict:
    """Average of the metrics over consecutive, equally large folds of the images (COCO's five-fold 1K protocol).

    Raises:
        ValueError: `folds` does not divide the number of images.
    """
    if len(images) % folds:
        raise ValueError(f"eval_folds={folds} does not divide the {len(images)} images")
    size = len(images) // folds
    results = []
    for fold in range(folds):
        part = images.take(np.arange(fold * size, (fold + 1) * size))
        results.append(retrieval_metrics(part, texts.take(np.flatnonzero(np.isin(texts.ids, part.ids)))))
    return _average(results)


def _average(values: list):
    if isinstance(values[0], dict):
        return {key: _average([value[key] for value in values]) for key in values[0]}
    return sum(values) / len(values)


def chance(images: SparseVectors, texts: SparseVectors) -> dict[str, dict[str, float]]:
    """R@K of a random ranking, both directions, in percent."""
    counts = np.unique(texts.ids, return_counts=True)[1]  # right captions of each image
    result: dict[str, dict[str, float]] = {"t2i": {}, "i2t": {}}
    for k in CUTOFFS:
        result["t2i"][f"R@{k}"] = min(100.0, 100.0 * k / len(images))
        # No right caption among the first k: each position drawn in turn from what is left.
        left = len(texts) - np.arange(min(k, len(texts)))
        missed = np.prod(np.clip(1 - counts[:, None] / left[None, :], 0, 1), axis=1)
        result["i2t"][f"R@{k}"] = float(100.0 * (1 - missed).mean())
    return result


def evaluate(
    images: SparseVectors, texts: SparseVectors, top_k: list[int], folds: int,
    words: tuple[Sequence[np.ndarray], np.ndarray] | None = None, cut_to_length_one: bool = False,
) -> dict:  # fmt: skip
    """All that an evaluation reports: `retrieval_metrics`, "pruned" by k, "folds" if any, and `chance`.

    With `words`, the terms of each image's captions and which terms count, also "grounding" (`grounding.grounding`).
    With `cut_to_length_one`, vectors cut to k terms are normalised again.
    """
    metrics = retrieval_metrics(images, texts)
    metrics["chance"] = chance(images, texts)
    if words is not None:
        metrics["grounding"] = grounding(images, *words)
    if top_k:
        metrics["pruned"] = {}
        for k in top_k:
            cut = [rows.top_k(k) for rows in (images, texts)]
            cut = [rows.at_length_one() for rows in cut] if cut_to_length_one else cut
            metrics["pruned"][str(k)] = retrieval_metrics(*cut)
    if folds:
        metrics["folds"] = {"count": folds, **folded_metrics(images, texts, folds)}
    return metrics


def table(metrics: dict[str, dict]) -> str:
    """A printed table, one line per name, of what `evaluate` gives."""
    head = f"{'':24}{'text to image':^24}{'image to text':^24}{'':>8}{'active terms':^16}"
    cutoffs = "".join(f"{f'R@{k}':>8}" for k in CUTOFFS)
    lines = [head, f"{'':24}{cutoffs}{cutoffs}{'sum':>8}{'text':>8}{'image':>8}"]
    rows = {}
    for name, row in metrics.items():
        rows[name] = row
        rows.update({f"{name}, {k} terms": pruned for k, pruned in row.get("pruned", {}).items()})
        if "folds" in row:
            rows[f"{name}, {row['folds']['count']} folds"] = row["folds"]
    for name, row in rows.items():
        numbers = "".join(f"{row[side][f'R@{k}']:8.2f}" for side in ("t2i", "i2t") for k in CUTOFFS)
        terms = row["active_terms"]
        lines.append(f"{name:24}{numbers}{row['rsum']:8.1f}{terms['text']:8.1f}{terms['image']:8.1f}")
    return "\n".join(lines)


def words(metrics: dict[str, dict]) -> str:
    """A printed line per name with a grounding, of what `evaluate` gives."""
    lines = []
    for name, row in metrics.items():
        if found := row.get("grounding"):
            lines.append(
                f"{name}: {found['images']:.1f}% of the images have a word of their captions among their {HEAVIEST} "
                f"heaviest terms ({found['terms']:.2f} words), by chance {found['chance_images']:.1f}% "
                f"({found['chance_terms']:.2f})"
            )
    return "\n".join(lines)
