"""Windows of a corpus to rows of terms and weights: batches through the model, results in the corpus's order.

Texts are sorted by length inside a window, so that a batch is padded little. What a window gives depends on nothing
outside it: neither on other windows nor on how many processes divide the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lexlip.encode.corpus import Images, Texts
from lexlip.models.retrieval import LexiconModel
from lexlip.sparse import SparseRows, as_ids, nonzero_terms
from lexlip_data.errors import BrokenSample, one_line
from lexlip_data.loading.faults import explain_loader_failure
from lexlip_data.sources.images import open_image
from lexlip_data.sources.kinds import unread_named
from lexlip_data.sources.skipped import Skipped

Window = tuple[int, int]  # first document, and the one after the last


@dataclass(frozen=True)
class CorpusEncoder:
    """How documents become vectors.

    Attributes:
        model: in evaluation mode, on its device.
        top_k: how many of the heaviest terms of a vector are kept, as `model.cut_to_length_one` says; None: all.
        batch_size: documents at once.
        workers: processes that decode images; 0: this one does.
    """

    model: LexiconModel
    top_k: int | None
    batch_size: int
    workers: int

    def windows(self, corpus: Images | Texts, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list[Skipped]]]:
        """The rows of each window in turn, and the documents that had to be left out.

        Raises:
            IndexingError: a weight that is not a number; names the document.
        """
        encode: Any = self._images if corpus.what == "images" else self._texts
        return encode(corpus, windows)

    def _texts(self, corpus: Texts, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list[Skipped]]]:
        for start, stop in windows:
            items = list(corpus.read(start, stop))
            skipped = [item for item in items if isinstance(item, Skipped)]
            documents = [item for item in items if not isinstance(item, Skipped)]
            by_length = sorted(range(len(documents)), key=lambda number: len(documents[number][1]))
            parts = []
            for first in range(0, len(by_length), self.batch_size):
                ids, texts = zip(*(documents[number] for number in by_length[first : first + self.batch_size]))
                parts.append(self._rows(ids, self.model.encode_text(texts)))
            yield _joined(parts, by_length, corpus), skipped

    def _images(self, corpus: Images, windows: Iterable[Window]) -> Iterator[tuple[SparseRows, list[Skipped]]]:
        windows, ahead = tee(windows)  # one loader for all, so that its processes decode ahead of a window's end
        batches = (batch for window in ahead for batch in self._batches(window))
        pixels_of = partial(_pixels, side=self.model.least_side, transform=self.model.loader_transform())
        decoded = decoded_batches(corpus, pixels_of, batches, self.workers)  # whose workers copy no model
        for window in windows:
            parts, skipped = [], []
            for _ in self._batches(window):
                batch = next(decoded)
                skipped += [item for item in batch if isinstance(item, Skipped)]
                good = [item for item in batch if not isinstance(item, Skipped)]
                if good:
                    ids, pixels = zip(*good)
                    images = self.model.from_loader(torch.stack(pixels))
                    parts.append(self._rows(ids, self.model.encode_image(images)))
            yield _joined(parts, range(sum(map(len, parts))), corpus), skipped

    def _batches(self, window: Window) -> list[list[int]]:
        documents = list(range(*window))
        return [documents[first : first + self.batch_size] for first in range(0, len(documents), self.batch_size)]

    def _rows(self, ids: Sequence[int | str], vectors: Tensor) -> SparseRows:
        """In the model's precision and unchecked: terms are cut before their weights are rounded."""
        rows = SparseRows(as_ids(ids), *nonzero_terms(vectors))
        if self.top_k is None:
            return rows
        cut = rows.top_k(self.top_k)
        return cut.at_length_one() if self.model.cut_to_length_one else cut


def _joined(parts: list[SparseRows], numbers: Sequence[int], corpus: Images | Texts) -> SparseRows:
    """Rows of all parts in the order of their numbers, checked and in the types of an index."""
    if not parts:
        return SparseRows.from_bags([])
    rows = SparseRows.concatenate(parts).take(np.argsort(numbers))
    return SparseRows.from_arrays(rows.ids, rows.offsets, rows.terms, rows.weights, f"vectors of {corpus.origin}")


def decoded_batches(
    corpus: Images, pixels: Callable[[bytes | memoryview], Tensor], batches: Iterable[list[int]], workers: int
) -> Iterator[list[tuple[Any, Tensor] | Skipped]]:
    """Images of each batch as (id, what `pixels` makes of the encoded bytes), or why there is none.

    Args:
        pixels: pickled for the workers where they are spawned.
        batches: numbers of images; read ahead of what is handed out.
        workers: processes that decode; 0: this one does.
    """
    loader = DataLoader(_Decoded(corpus, pixels), batch_sampler=batches, num_workers=workers, collate_fn=list)
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        raise explain_loader_failure(error) or error from error


def _pixels(data: bytes | memoryview, side: int, transform: Callable) -> Tensor:
    return transform(open_image(data, side))


class _Decoded(Dataset):
    """(id, pixels), or why there are none."""

    def __init__(self, corpus: Images, pixels: Callable[[bytes | memoryview], Tensor]):
        self.corpus, self.pixels = corpus, pixels

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, i: int) -> tuple[Any, Tensor] | Skipped:
        try:
            id, data = self.corpus.image(i)
            with unread_named(data):
                return id, self.pixels(data)
        except BrokenSample as error:
            name = self.corpus.name(i)
            return Skipped(name, name, getattr(error, "kind", "broken"), one_line(error))
