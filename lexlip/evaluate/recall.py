"""Recall@K by ids, both directions, from vectors of any number of processes.

Vectors are kept sparse (their words and weights), so a COCO-sized test of 5,000 pictures and 25,010 captions takes
tens of megabytes. Captions stay sparse in the product too, a few dense pictures at a time; only vectors that are nearly
dense are multiplied as such. One product serves both directions, and its pictures are shared out among the processes.

Ranks are exact. A product in float32 decides every comparison that lies outside its rounding error; captions with a
comparison inside it are multiplied again in float64, where products of float32 numbers add up to about 1e-16. Scores
within 1e-12 are the same score, added up in another order.

A rank counts every item that scores more than the best right one, and every wrong item that scores the same: a model
that gives all items one score finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.models.lexicon_head import keep_heaviest
from lexlip.utils.distributed import gather_objects, rank, world_size

CUTOFFS = (1, 5, 10)
BLOCK_NUMBERS = 2**21  # of a block with sparse captions: so many as the processor's cache holds
DENSE_BLOCK_NUMBERS = 2**26  # of a block with dense ones
DENSE_SHARE = 1 / 4  # of the words: from here on a dense product is quicker
ROUNDING = 2**-24  # of float32
TIE = 1e-12  # scores closer than this, relative to one or to the score, are the same


@dataclass
class SparseVectors:
    """Rows of word ids and weights, with the picture that each row belongs to.

    Attributes:
        ids: (N,) int64 picture id of each row.
        order: (N,) int64 place of each row in its data set; rows with the same place are the same row.
        offsets: (N + 1,) int64; row i holds words[offsets[i]:offsets[i + 1]].
        words, weights: (nnz,) int32 and float32.
        vocab: V.
    """

    ids: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    words: np.ndarray
    weights: np.ndarray
    vocab: int

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_dense(cls, vectors: Tensor, ids: Tensor, order: Tensor) -> SparseVectors:
        """(B, V) vectors with their (B,) picture ids and places."""
        vectors = vectors.float()
        row, word = vectors.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(vectors))
        offsets = np.concatenate([[0], counts.cumsum(0).cpu().numpy()])
        return cls(
            ids.cpu().numpy(),
            order.cpu().numpy(),
            offsets,
            word.int().cpu().numpy(),
            vectors[row, word].cpu().numpy(),
            vectors.shape[1],
        )

    @classmethod
    def concatenate(cls, parts: list[SparseVectors]) -> SparseVectors:
        """Rows of all parts, one per place, in the order of their places."""
        if not parts:
            raise ValueError("no vectors were collected: the data set is empty")
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], lengths.cumsum()])
        order = np.concatenate([part.order for part in parts])
        merged = cls(
            np.concatenate([part.ids for part in parts]),
            order,
            offsets,
            np.concatenate([part.words for part in parts]),
            np.concatenate([part.weights for part in parts]),
            parts[0].vocab,
        )
        return merged.take(np.unique(order, return_index=True)[1])

    def take(self, rows: np.ndarray) -> SparseVectors:
        """These rows, in this order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], lengths.cumsum()])
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return SparseVectors(
            self.ids[rows], self.order[rows], offsets, self.words[source], self.weights[source], self.vocab
        )

    def between(self, start: int, stop: int) -> SparseVectors:
        """Rows start to stop, as views."""
        low, high = self.offsets[start], self.offsets[stop]
        offsets = self.offsets[start : stop + 1] - low
        words, weights = self.words[low:high], self.weights[low:high]
        return SparseVectors(self.ids[start:stop], self.order[start:stop], offsets, words, weights, self.vocab)

    def gathered(self) -> SparseVectors:
        """Rows of all processes, one per place."""
        return SparseVectors.concatenate(gather_objects(self))

    def dense(self, start: int, stop: int) -> Tensor:
        """(stop - start, V) float32."""
        part = self.between(start, stop)
        block = torch.zeros(stop - start, self.vocab)
        block[torch.from_numpy(part.rows), torch.from_numpy(part.words).long()] = torch.from_numpy(part.weights)
        return block

    def columns(self) -> Tensor:
        """(V, N) float32: all rows, dense, as columns."""
        block = torch.zeros(self.vocab, len(self))
        block[torch.from_numpy(self.words).long(), torch.from_numpy(self.rows)] = torch.from_numpy(self.weights)
        return block

    def times(self, columns: Tensor) -> Tensor:
        """(N, n) dot products of all rows with (V, n) columns, added up in their dtype."""
        if self.nearly_dense:
            return self.dense(0, len(self)).to(columns.dtype) @ columns
        offsets = torch.from_numpy(self.offsets[:-1])
        words, weights = torch.from_numpy(self.words), torch.from_numpy(self.weights)
        weights = weights.to(columns.dtype)
        return F.embedding_bag(words, columns, offsets.to(words.dtype), mode="sum", per_sample_weights=weights)

    @property
    def nearly_dense(self) -> bool:
        """Whether most words have a weight, as before a model has learned."""
        return len(self.words) > DENSE_SHARE * len(self) * self.vocab

    @property
    def norms(self) -> np.ndarray:
        """(N,) L2 norms."""
        return np.sqrt(np.bincount(self.rows, self.weights.astype(np.float64) ** 2, minlength=len(self)))

    @property
    def rows(self) -> np.ndarray:
        """(nnz,) row of each word."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def broken(self) -> np.ndarray:
        """(N,) true where a weight is infinite or no number."""
        return np.bincount(self.rows[~np.isfinite(self.weights)], minlength=len(self)) > 0

    def pruned(self, k: int) -> SparseVectors:
        """Each row cut to its k heaviest words, weights unchanged."""
        parts = [
            SparseVectors.from_dense(
                keep_heaviest(self.dense(start, stop), k),
                torch.from_numpy(self.ids[start:stop]),
                torch.from_numpy(self.order[start:stop]),
            )
            for start, stop in _blocks(len(self), BLOCK_NUMBERS // self.vocab)
        ]
        return SparseVectors.concatenate(parts)

    @property
    def active_terms(self) -> float:
        """Average number of words with a weight."""
        return len(self.words) / max(1, len(self))


def _blocks(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive blocks of at most `step` rows, at least one."""
    step = max(1, step)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def best_ranks(texts: SparseVectors, images: SparseVectors) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, from 1, of the best right item (one with the same picture id) of each query, in both directions.

    Every process must call it with the same vectors.

    Returns:
        (captions,) ranks among the pictures and (pictures,) ranks among the captions.

    Raises:
        ValueError: a caption's picture is not there, or a picture has no caption.
    """
    _check_right_items(texts, images)
    _check_right_items(images, texts)
    # Blocks of pictures times blocks of captions: either way the largest of both and of their product fits.
    numbers = DENSE_BLOCK_NUMBERS if texts.nearly_dense else BLOCK_NUMBERS
    at_once = numbers // texts.vocab if texts.nearly_dense else texts.vocab
    mine = list(_blocks(len(images), numbers // images.vocab))[rank() :: world_size()]
    best_text, best_image = _best_right_scores(texts, images, mine, at_once)
    best_text = np.maximum.reduce(gather_objects(best_text))
    above = gather_objects(_count_above(texts, images, mine, at_once, _bar(best_text), _bar(best_image)))
    return 1 + sum(text for text, _ in above), 1 + sum(image for _, image in above)


def _best_right_scores(texts: SparseVectors, images: SparseVectors, mine: list, at_once: int) -> tuple:
    """(captions,) and (pictures,) best score of a right item, exact, minus infinity where none is among mine."""
    best_text, best_image = np.full(len(texts), -np.inf), np.full(len(images), -np.inf)
    for start, stop in mine:
        pictures = images.between(start, stop)
        columns = pictures.columns().double()
        own = np.flatnonzero(np.isin(texts.ids, pictures.ids))
        for rows in (own[a:b] for a, b in _blocks(len(own), at_once)):
            captions = texts.take(rows)
            scores = _scores(captions, pictures, columns)
            scores = scores.masked_fill_(_wrong(captions, pictures), -torch.inf).numpy()
            best_text[rows] = np.maximum(best_text[rows], scores.max(1))
            best_image[start:stop] = np.maximum(best_image[start:stop], scores.max(0))
    return best_text, best_image


def _count_above(
    texts: SparseVectors, images: SparseVectors, mine: list, at_once: int, bar_text: Tensor, bar_image: Tensor
) -> tuple:
    """(captions,) and (pictures,) numbers of wrong items that are not below the query's bar."""
    # A sum of n rounded products is off by at most n roundings of the product of the norms.
    off = ROUNDING * (np.diff(texts.offsets) + 2) * texts.norms * images.norms.max()
    off = torch.from_numpy(off)[:, None]
    above_text, above_image = np.zeros(len(texts), np.int64), np.zeros(len(images), np.int64)
    for start, stop in mine:
        pictures = images.between(start, stop)
        columns = pictures.columns()
        for a, b in _blocks(len(texts), at_once):
            captions = texts.between(a, b)
            scores, wrong = _scores(captions, pictures, columns).double(), _wrong(captions, pictures)
            bars = bar_text[a:b, None], bar_image[None, start:stop]
            unsure = sum(~((scores - bar).abs() > off[a:b]) & wrong for bar in bars).any(1).numpy()
            if unsure.any():
                scores[unsure] = _scores(captions.take(np.flatnonzero(unsure)), pictures, columns.double())
            # "Not below" rather than "at least": a score that is no number counts against the model too.
            above_text[a:b] += (~(scores < bars[0]) & wrong).sum(1).numpy()
            above_image[start:stop] += (~(scores < bars[1]) & wrong).sum(0).numpy()
    return above_text, above_image


def _bar(best: np.ndarray) -> Tensor:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no number, below which nothing is
        return torch.from_numpy(best - TIE * np.maximum(1, np.abs(best)))


def _check_right_items(queries: SparseVectors, gallery: SparseVectors) -> None:
    missing = ~np.isin(queries.ids, gallery.ids)
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(queries)} queries have no right item in the gallery, "
            f"the first at place {queries.order[missing.argmax()]}"
        )


def _scores(texts: SparseVectors, images: SparseVectors, columns: Tensor) -> Tensor:
    """(captions, pictures) in the columns' dtype; a broken picture's are no numbers, whatever words it shares."""
    return texts.times(columns).masked_fill_(torch.from_numpy(images.broken())[None, :], torch.nan)


def _wrong(texts: SparseVectors, images: SparseVectors) -> Tensor:
    """(captions, pictures) true where the caption is another picture's."""
    return torch.from_numpy(texts.ids)[:, None] != torch.from_numpy(images.ids)[None, :]


def summary(ranks: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, mean and median rank."""
    metrics = {f"R@{k}": round(100.0 * float((ranks <= k).mean()), 4) for k in CUTOFFS}
    return {**metrics, "mean_rank": float(ranks.mean()), "median_rank": float(np.median(ranks))}


def retrieval_metrics(images: SparseVectors, texts: SparseVectors) -> dict:
    """Both directions of one test set.

    Args:
        images: one row per picture.
        texts: one row per caption.

    Returns:
        {"t2i": {...}, "i2t": {...}, "rsum", "active_terms": {"text", "image"}, "pictures", "captions"}, recalls in
        percent.
    """
    t2i, i2t = (summary(ranks) for ranks in best_ranks(texts, images))
    return {
        "t2i": t2i,
        "i2t": i2t,
        "rsum": round(sum(side[f"R@{k}"] for side in (t2i, i2t) for k in CUTOFFS), 4),
        "active_terms": {"text": texts.active_terms, "image": images.active_terms},
        "pictures": len(images),
        "captions": len(texts),
    }


def folded_metrics(images: SparseVectors, texts: SparseVectors, folds: int) -> dict:
    """Average of the metrics over consecutive, equally large folds of the pictures (COCO's five-fold 1K protocol).

    Raises:
        ValueError: the pictures do not divide by `folds`.
    """
    if len(images) % folds:
        raise ValueError(f"eval_folds={folds} does not divide the {len(images)} pictures")
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
    counts = np.unique(texts.ids, return_counts=True)[1]  # right captions of each picture
    result: dict[str, dict[str, float]] = {"t2i": {}, "i2t": {}}
    for k in CUTOFFS:
        result["t2i"][f"R@{k}"] = min(100.0, 100.0 * k / len(images))
        # No right caption among the first k: each place drawn in turn from what is left.
        left = len(texts) - np.arange(min(k, len(texts)))
        missed = np.prod(np.clip(1 - counts[:, None] / left[None, :], 0, 1), axis=1)
        result["i2t"][f"R@{k}"] = float(100.0 * (1 - missed).mean())
    return result


def evaluate(images: SparseVectors, texts: SparseVectors, top_k: list[int], folds: int) -> dict:
    """All that an evaluation reports: `retrieval_metrics`, "pruned" by k, "folds" where asked for, and `chance`."""
    metrics = retrieval_metrics(images, texts)
    metrics["chance"] = chance(images, texts)
    if top_k:
        metrics["pruned"] = {str(k): retrieval_metrics(images.pruned(k), texts.pruned(k)) for k in top_k}
    if folds:
        metrics["folds"] = {"count": folds, **folded_metrics(images, texts, folds)}
    return metrics


def table(metrics: dict[str, dict]) -> str:
    """A printed table, one line per name.

    Args:
        metrics: name -> what `retrieval_metrics` gives.
    """
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
