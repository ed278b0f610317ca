"""Windows of a corpus to rows of terms and weights: batches through the model, results back in the corpus's order.

Texts are sorted by length inside a window, so that a batch is padded little. What a window gives depends on nothing
outside it: neither on other windows nor on how many processes share the work.

B documents of a batch, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lexlip.encode.corpus import Pictures, Texts
from lexlip.index import SparseRows
from lexlip.models.lexicon_head import keep_heaviest
from lexlip.models.lexlip import LexLIP
from lexlip_data.errors import BrokenSample, one_line
from lexlip_data.loading.faults import explain_loader_failure
from lexlip_data.loading.transforms import build_pixels, normalise
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import Skipped

Window = tuple[int, int]  # first document, and the one after the last


@dataclass(frozen=True)
class Encoder:
    """How documents become vectors.

    Attributes:
        model: in evaluation mode, on its device.
        top_k: only so many heaviest terms of a vector are kept, weights as they were; None: all.
        batch_size: documents at once.
        workers: processes that decode pictures; 0: this one does.
    """

    model: LexLIP
    top_k: int | None
    batch_size: int
    workers: int

    def windows(self, corpus: Pictures | Texts, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list]]:
        """Of each window in turn its rows, and what had to be left out as a list of `Skipped`."""
        return (self._pictures if corpus.what == "images" else self._texts)(corpus, windows)

    def _texts(self, corpus: Texts, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list]]:
        for start, stop in windows:
            rows = _Rows(corpus)
            documents = []
            for place, item in enumerate(corpus.read(start, stop)):
                if isinstance(item, Skipped):
                    rows.skipped.append(item)
                else:
                    documents.append((place, *item))
            documents.sort(key=lambda document: (len(document[2]), document[0]))
            for first in range(0, len(documents), self.batch_size):
                places, ids, texts = zip(*documents[first : first + self.batch_size])
                rows.add(places, ids, self._cut(self.model.encode_text(texts)))
            yield rows.sorted()

    def _pictures(self, corpus: Pictures, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list]]:
        windows, ahead = tee(windows)  # one loader for all, so that its processes decode ahead of a window's end
        loader = DataLoader(
            _Decoded(corpus, self.model.config.image_size),
            batch_sampler=(list(batch) for window in ahead for batch in _batches(window, self.batch_size)),
            num_workers=self.workers, collate_fn=list,
        )  # fmt: skip
        decoded = iter(loader)
        for window in windows:
            rows = _Rows(corpus)
            for _ in _batches(window, self.batch_size):
                found = _next(decoded)
                rows.skipped += [item for _, item, _ in found if isinstance(item, Skipped)]
                good = [(place, id, pixels) for place, id, pixels in found if pixels is not None]
                if good:
                    places, ids, pixels = zip(*good)
                    pixels = normalise(torch.stack(pixels).to(self.model.device))
                    rows.add(places, ids, self._cut(self.model.encode_image(pixels)))
            yield rows.sorted()

    def _cut(self, vectors: Tensor) -> Tensor:
        return vectors if self.top_k is None else keep_heaviest(vectors, self.top_k)


def _batches(window: Window, size: int) -> list[range]:
    start, stop = window
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def _next(decoded: Iterator[list]) -> list:
    try:
        return next(decoded)
    except (RuntimeError, OSError, EOFError) as error:
        raise explain_loader_failure(error) or error from error


class _Rows:
    """Documents of a window, collected in any order."""

    def __init__(self, corpus: Pictures | Texts):
        self.corpus, self.skipped = corpus, []
        self._found: list[tuple[int, int | str, np.ndarray, np.ndarray]] = []

    def add(self, places: Sequence[int], ids: Sequence[int | str], vectors: Tensor) -> None:
        """(B, V) vectors and where they belong."""
        vectors = vectors.half()  # first: what is too light for it is no term
        row, terms = vectors.nonzero(as_tuple=True)
        ends = torch.bincount(row, minlength=len(vectors)).cumsum(0)[:-1].cpu().numpy()
        weights = vectors[row, terms].cpu().numpy()
        terms = terms.to(torch.int32).cpu().numpy()
        self._found += zip(places, ids, np.split(terms, ends), np.split(weights, ends))

    def sorted(self) -> tuple[SparseRows, list[Skipped]]:
        """In the corpus's order.

        Raises:
            IndexingError: a weight that is no number; names the document.
        """
        found = sorted(self._found, key=lambda document: document[0])
        ids = [id for _, id, _, _ in found]
        lengths = [len(terms) for _, _, terms, _ in found]
        rows = SparseRows.from_arrays(
            np.array(ids, np.int64) if self.corpus.ids == "int" else ids,
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            np.concatenate([np.empty(0, np.int32), *(terms for _, _, terms, _ in found)]),
            np.concatenate([np.empty(0, np.float16), *(weights for _, _, _, weights in found)]),
            f"vectors of {self.corpus.origin}",
        )
        return rows, self.skipped


class _Decoded(Dataset):
    """(place, id, (3, H, W) uint8 pixels), or (place, `Skipped`, None)."""

    def __init__(self, corpus: Pictures, size: int):
        self.corpus, self.size = corpus, size
        self.pixels = build_pixels("vit", size)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, i: int) -> tuple[int, str | Skipped, Tensor | None]:
        try:
            id, data = self.corpus.picture(i)
            return i, id, self.pixels(open_image(data, self.size))
        except BrokenSample as error:
            name = self.corpus.place(i)
            return i, Skipped(name, name, getattr(error, "kind", "broken"), one_line(error)), None
