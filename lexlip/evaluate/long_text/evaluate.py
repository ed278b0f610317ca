"""One set of pairs with one model: vectors of all images and texts, recall both ways.

Images are decoded whole and upright, by loader processes if wanted; one batch of them is in memory at a time.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lexlip.errors import BenchmarkError
from lexlip.evaluate.long_text.encoders import PairEncoder
from lexlip.evaluate.long_text.layouts import PairSet
from lexlip.evaluate.recall import CUTOFFS, SparseVectors, retrieval_metrics
from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image


def refuse_missing(sets: list[PairSet]) -> None:
    """Raise for images and entries that are not there.

    Raises:
        BenchmarkError: listing all of them, one a line.
    """
    lines = [f"{pairs.name}: {line}" for pairs in sets for line in pairs.missing]
    if lines:
        listed = "\n  ".join(lines)
        raise BenchmarkError(
            f"{len(lines)} images or entries are missing; --allow-missing evaluates without them:\n  {listed}"
        )


def evaluate(
    pairs: PairSet, encoder: PairEncoder, batch_size: int = 64, workers: int = 0, allow_missing: bool = False
) -> dict:
    """Recall of one set.

    Args:
        batch_size: images, and texts, encoded at once.
        workers: processes that decode images; 0: this one.
        allow_missing: leave out pairs whose image cannot be decoded, and count them with what else is missing.

    Returns:
        {"i2t": {"R@1", ...}, "t2i": {...}, "pairs", "missing", "truncated": texts cut at the model's context}, recalls
        in percent.

    Raises:
        BenchmarkError: images that cannot be decoded, or no pair at all.
    """
    rows, broken = _encode_images(pairs, encoder, batch_size, workers)
    lost = PairSet(pairs.name, missing=[f"{pairs.images[i]}: {reason}" for i, reason in sorted(broken.items())])
    if not allow_missing:
        refuse_missing([lost])
    kept = [i for i in range(len(pairs.texts)) if i not in broken]
    if not kept:
        raise BenchmarkError(f"{pairs.name} holds no pair; is it the right folder?")
    kept.sort(key=lambda i: len(pairs.texts[i]))  # little padding in a batch; rows come in the order of their numbers
    texts, truncated = [], 0
    for start in tqdm(range(0, len(kept), batch_size), f"{pairs.name} texts", leave=False):
        part = kept[start : start + batch_size]
        vectors, cut = encoder.texts([pairs.texts[i] for i in part])
        texts.append(_rows(vectors, part))
        truncated += cut
    metrics = retrieval_metrics(SparseVectors.concatenate(rows), SparseVectors.concatenate(texts))
    return {
        **{side: {f"R@{k}": metrics[side][f"R@{k}"] for k in CUTOFFS} for side in ("i2t", "t2i")},
        "pairs": len(kept),
        "missing": len(pairs.missing) + len(broken),
        "truncated": truncated,
    }


def table(results: dict[str, dict]) -> str:
    """A printed table, one line per set."""
    cutoffs = "".join(f"{f'R@{k}':>8}" for k in CUTOFFS)
    lines = [
        f"{'':12}{'image to text':^24}{'text to image':^24}",
        f"{'':12}{cutoffs}{cutoffs}{'pairs':>8}{'cut':>8}{'missing':>9}",
    ]
    for name, row in results.items():
        numbers = "".join(f"{row[side][f'R@{k}']:8.2f}" for side in ("i2t", "t2i") for k in CUTOFFS)
        lines.append(f"{name:12}{numbers}{row['pairs']:8}{row['truncated']:8}{row['missing']:9}")
    return "\n".join(lines)


def _encode_images(
    pairs: PairSet, encoder: PairEncoder, batch_size: int, workers: int
) -> tuple[list[SparseVectors], dict[int, str]]:
    rows, broken = [], {}
    loader = DataLoader(_Images(pairs.images, encoder.transform), batch_size, num_workers=workers, collate_fn=list)
    for batch in tqdm(loader, f"{pairs.name} images", leave=False):
        broken.update({i: reason for i, reason in batch if isinstance(reason, str)})
        good = {i: pixels for i, pixels in batch if isinstance(pixels, Tensor)}
        if good:
            rows.append(_rows(encoder.images(torch.stack(list(good.values()))), list(good)))
    return rows, broken


def _rows(vectors: Tensor, numbers: list[int]) -> SparseVectors:
    ids = torch.tensor(numbers)
    return SparseVectors.from_dense(vectors, ids, ids)


class _Images(Dataset):
    """(number, transformed image), or (number, what is wrong with it)."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[int, Tensor | str]:
        try:
            return number, self.transform(open_image(self.paths[number].read_bytes()))
        except (BrokenImage, OSError) as error:
            return number, str(error)
