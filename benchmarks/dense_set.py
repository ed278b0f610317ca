"""A dense model's own vectors of what the large-scale benchmark's collections hold, in the same order.

Mixtures are of the same pairs with the same weights as the lexicon model's, normalised to length 1. Vectors are kept as
float32 arrays in files that the next run finds, by the model and by the documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from trained_set import TrainedSet, mixed_pairs

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.run import fingerprint
from lexlip.models.retrieval import RetrievalModel
from lexlip_data.errors import BrokenSample, one_line
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import Skipped

BLOCK = 50_000  # vectors at once
_BATCH = 64
_WINDOW = 16 * _BATCH  # texts that are sorted by length together


class DenseSet:
    """Dense vectors of a `TrainedSet`'s documents.

    Args:
        model: with a dense head and a tokenizer.
        data: what is encoded.
        folder: of the arrays.

    Raises:
        SystemExit: no dense head, no tokenizer, or an image or text that cannot be read: the lexicon model's vectors
            then lack it.
    """

    def __init__(self, model: RetrievalModel, data: TrainedSet, folder: Path):
        if "dense" not in model.widths:
            raise SystemExit("--dense-model: this model has no dense head")
        if model.tokenizer is None:
            raise SystemExit("the dense model has no tokenizer, which captions need; save one into its folder")
        folder = folder / f"dense-{fingerprint(model)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._vectors = {kind: [_vectors(model, c, folder) for c in corpora] for kind, corpora in data.corpora.items()}
        names = [name for name, _ in data.sources["images"]]
        self._mixtures = dict(data.sources["images"])[names[-1]] if len(names) == 3 else 0

    def queries(self, kind: str) -> np.ndarray:
        """(Q, W) float32 of the val documents, of length 1."""
        return np.array(self._vectors[kind][0])

    def rows(self, kind: str, distractors: int) -> Iterator[np.ndarray]:
        """(n, W) float32 of length 1: the first distractors and then the val documents, as `TrainedSet.rows`."""
        left = distractors
        for block in self._others(kind):
            if not left:
                break
            yield block[:left]
            left -= len(block[:left])
        if left:
            raise SystemExit(f"{distractors:,} distractors are wanted, but {left:,} {kind} are missing")
        yield self.queries(kind)

    def _others(self, kind: str) -> Iterator[np.ndarray]:
        others = self._vectors[kind][1:]
        for vectors in others:
            for begin in range(0, len(vectors), BLOCK):
                yield np.array(vectors[begin : begin + BLOCK])
        if kind == "images" and self._mixtures:
            real = np.concatenate(others)
            for _, pairs, ratios in mixed_pairs(len(real), self._mixtures):
                mixed = ratios[:, None] * real[pairs[:, 0]] + (1 - ratios[:, None]) * real[pairs[:, 1]]
                yield mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)


def _vectors(model: RetrievalModel, corpus: Images | Texts, folder: Path) -> np.ndarray:
    """(N, W) float32 in a mapped file; written if it is not there."""
    of = hashlib.blake2b(f"{corpus.what} {corpus.fingerprint()}".encode(), digest_size=16).hexdigest()
    file = folder / f"{of}.npy"
    if not file.exists():
        draft = file.with_suffix(".tmp")
        rows = np.lib.format.open_memmap(draft, "w+", np.float32, (len(corpus), model.widths["dense"]))
        batches = _images(model, corpus) if corpus.what == "images" else _texts(model, corpus)
        with tqdm(total=len(corpus), unit=f" {corpus.what}") as bar:
            for numbers, vectors in batches:
                rows[numbers] = vectors.cpu().numpy()
                bar.update(len(numbers))
        rows.flush()
        draft.replace(file)
    return np.load(file, mmap_mode="r")


def _images(model: RetrievalModel, corpus: Images) -> Iterator[tuple]:
    for begin in range(0, len(corpus), _BATCH):
        numbers = list(range(begin, min(begin + _BATCH, len(corpus))))
        try:
            images = [open_image(corpus.image(number)[1], model.least_side) for number in numbers]
        except BrokenSample as error:
            raise SystemExit(f"{corpus.origin}: {one_line(error)}; the dense model needs every image") from error
        yield numbers, model.encode_image(images, head="dense")


def _texts(model: RetrievalModel, corpus: Texts) -> Iterator[tuple]:
    documents = enumerate(corpus.read(0, len(corpus)))
    while window := list(islice(documents, _WINDOW)):
        for number, text in window:
            if isinstance(text, Skipped):
                raise SystemExit(
                    f"{corpus.origin}: document {number + 1} cannot be read; the dense model needs every text"
                )
        window.sort(key=lambda document: len(document[1][1]))
        for first in range(0, len(window), _BATCH):
            numbers, texts = zip(*window[first : first + _BATCH])
            yield list(numbers), model.encode_text([text for _, text in texts], head="dense")
