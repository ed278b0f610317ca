"""A folder of cached features, opened for reading: rows in any order, from files that are mapped.

Costs 20 bytes per caption and 8 per photo in memory; the features stay in the files, which processes share. Opening a
split reads it once for the checksums (about 1 s per GB); `verify=False` compares sizes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lexlip.encode.shards import ShardPlan
from lexlip.errors import FeaturesError
from lexlip.features import layout
from lexlip.features.layout import FACTS, KINDS, ImageShard, Limits, TextShard, Widths, check_digest, read_shard
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.towers import TextFeatures
from lexlip_data.errors import one_line
from lexlip_data.sources.files import is_name


class FeatureStore:
    """The features of a folder that `lexlip cache` finished.

    Attributes:
        facts: what features.json says; `facts["image"]` and `facts["text"]` are the towers' own facts.
        image_tokens, image_width: L and D of a photo.
        text_width, pooled_width: of a word piece's state, and of a caption's vector.
        terms: word pieces of the lexicon.
        splits: their names, train first.
    """

    def __init__(self, folder: str | Path, verify: bool = True):
        """
        Args:
            verify: compare each shard with its checksum when its split is opened.
        Raises:
            FeaturesError: no such folder, not finished, or damaged.
        """
        self.folder, self.verify = Path(folder), verify
        self._opened: dict[str, FeatureSplit] = {}
        if not (self.folder / FACTS).exists():
            raise FeaturesError(
                f"{folder} holds no features ({FACTS} is not there); `lexlip cache` makes such a folder"
            )
        self.facts = layout.read_facts(self.folder)
        self._read_shape()
        for (split, kind), plan in self._plans.items():
            missing = next((path for path in self.paths(split, kind) if not path.is_file()), None)
            if missing is not None:
                raise FeaturesError(
                    f"{self.folder} is not finished: {missing.relative_to(self.folder)}, of {plan.shards} shards, is "
                    "not there; run the same `lexlip cache` again, finished shards are kept"
                )

    def _read_shape(self) -> None:
        try:
            facts = self.facts
            if facts["format"] != layout.FORMAT:
                raise ValueError(f"format {facts['format']}, this version reads {layout.FORMAT}")
            widths, splits = facts["widths"], facts["splits"]
            self.widths = Widths(*(_number(widths[name], 1, 1 << 24) for name in ("tokens", "image", "text", "pooled")))
            self.splits = list(splits)
            self._plans = {
                (split, kind): ShardPlan(
                    _number(splits[split][kind], 0), _number(facts["shard_rows"][kind], 1, layout.MOST_ROWS), 1
                )
                for split in splits
                for kind in KINDS
            }
            if not self.splits or not all(is_name(split) for split in self.splits):
                raise ValueError(f"splits {one_line(self.splits)}")
            self._run, self._vocabulary = str(facts["run"]), facts["vocabulary"]
            self.terms = _number(facts["terms"], 1)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FeaturesError(
                f"{self.folder / FACTS} cannot be used ({type(error).__name__}: {one_line(error)}); name a new folder "
                "and cache again"
            ) from error
        self.image_tokens, self.image_width = self.widths.tokens, self.widths.image
        self.text_width, self.pooled_width = self.widths.text, self.widths.pooled

    def __reduce__(self) -> tuple:
        return FeatureStore, (str(self.folder), False)  # what was verified need not be by each worker

    def paths(self, split: str, kind: str) -> Iterator[Path]:
        """The shards of a split's "images" or "texts"."""
        plan, folder = self._plans[split, kind], layout.part_folder(self.folder, split, kind)
        return (folder / f"{plan.name(shard)}.arrow" for shard in range(plan.shards))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The lexicon's. Raises FeaturesError if it is not the one that the captions were cut with."""
        folder = self.folder / layout.TOKENIZER
        try:
            tokenizer = load_tokenizer(str(folder))
        except Exception as error:  # a damaged tokenizer.json raises anything
            raise FeaturesError(f"{folder} cannot be read ({one_line(error)})") from error
        if layout.vocabulary_hash(tokenizer) != self._vocabulary:
            raise FeaturesError(f"{folder} is not the tokenizer that the captions were cut with")
        return tokenizer

    def split(self, name: str) -> FeatureSplit:
        """A split, opened once.

        Raises:
            FeaturesError: there is none of this name, or a shard is damaged.
        """
        if name not in self.splits:
            raise FeaturesError(
                f"{self.folder} has no split {one_line(name)!r}; its splits are {', '.join(self.splits)}"
            )
        if name not in self._opened:
            self._opened[name] = FeatureSplit(self, name)
        return self._opened[name]

    def damaged(self) -> list[str]:
        """What is wrong with each shard that is not what was written, one line each."""
        found = []
        for split, kind in self._plans:
            for shard, path in enumerate(self.paths(split, kind)):
                try:
                    self._read(split, kind, shard, path, whole=True)
                except FeaturesError as error:
                    found.append(str(error))
        return found

    def shards(self, split: str, kind: str) -> list:
        """All shards of a split's "images" or "texts", mapped. Raises FeaturesError where one is damaged."""
        paths = enumerate(self.paths(split, kind))
        return [self._read(split, kind, shard, path, self.verify) for shard, path in paths]

    def _read(self, split: str, kind: str, shard: int, path: Path, whole: bool):
        check_digest(path, whole)
        plan = self._plans[split, kind]
        limits = Limits(plan.size(shard), self._plans[split, "images"].documents, self.terms)
        return read_shard(path, self.widths, kind, f"{self._run}/{split}/{kind}", shard, plan.shards, limits)

    def photos(self, split: str) -> int:
        """Photos of a split, those that were left out included."""
        return self._plans[split, "images"].documents


class FeatureSplit:
    """Photos 0..N-1 and captions 0..M-1 of a split; what could not be read is not among them.

    Attributes:
        caption_image: (M,) int64, the photo of each caption.
    """

    def __init__(self, store: FeatureStore, name: str):
        self.store, self.name = store, name
        self._images: list[ImageShard] = store.shards(name, "images")
        self._texts: list[TextShard] = store.shards(name, "texts")
        numbers = _joined([shard.image for shard in self._images])
        row_of_number = np.full(store.photos(name), -1, dtype=np.int64)
        row_of_number[numbers] = np.arange(len(numbers))
        photos = row_of_number[_joined([shard.image for shard in self._texts])]
        self._stored = np.flatnonzero(photos >= 0)  # captions whose photo is there, among those in the files
        self.caption_image = photos[self._stored]
        self._lengths = _joined([np.diff(shard.offsets) for shard in self._texts])
        self._image_ends = np.cumsum([len(shard.image) for shard in self._images], dtype=np.int64)
        self._text_ends = np.cumsum([len(shard.image) for shard in self._texts], dtype=np.int64)
        self._n_images = len(numbers)

    def __reduce__(self) -> tuple:
        return FeatureStore.split, (self.store, self.name)

    @cached_property
    def image_ids(self) -> list[str]:
        """(N,), as the data has them."""
        return [id for shard in self._images for id in shard.ids.to_pylist()]

    @cached_property
    def captions(self) -> list[str]:
        """(M,), as the data has them."""
        everything = [text for shard in self._texts for text in shard.captions.to_pylist()]
        return everything if len(self._stored) == len(everything) else [everything[row] for row in self._stored]

    def term_counts(self) -> np.ndarray:
        """(number of word pieces,) int64: how often the captions have each."""
        counts = np.zeros(self.store.terms, np.int64)
        for shard in self._texts:
            counts += np.bincount(shard.terms, minlength=len(counts))
        return counts

    def caption_terms(self) -> list[np.ndarray]:
        """(N,) of each image the word pieces of all its captions."""
        found: list[list[np.ndarray]] = [[] for _ in range(self._n_images)]
        for first in range(0, len(self.caption_image), 4096):
            rows = np.arange(first, min(first + 4096, len(self.caption_image)))
            texts = self.texts(rows)
            for image, terms, mask in zip(
                self.caption_image[rows], texts.terms.numpy(), texts.mask.numpy(), strict=True
            ):
                found[image].append(terms[mask])
        return [np.concatenate([np.zeros(0, np.int64), *parts]) for parts in found]

    def images(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Features of some photos.

        Returns:
            (B, L, D) float16.

        Raises:
            IndexError: a row that is not from 0 to N - 1.
        """
        numbers = _rows(rows, self._n_images, "photo")
        widths = self.store.widths
        out = np.empty((len(numbers), widths.tokens, widths.image), np.float16)
        for shard, places, local in _by_shard(numbers, self._image_ends):
            out[places] = self._images[shard].features[local]
        return torch.from_numpy(out)

    def texts(self, rows: Sequence[int] | np.ndarray | Tensor) -> TextFeatures:
        """Features of some captions, padded to the longest of them.

        Returns:
            terms (B, T) int64 and mask (B, T) bool; states (B, T, D) and pooled (B, P) float16, 0 at padding.

        Raises:
            IndexError: a row that is not from 0 to M - 1.
        """
        numbers = self._stored[_rows(rows, len(self._stored), "caption")]
        lengths, widths = self._lengths[numbers], self.store.widths
        shape = len(numbers), int(lengths.max(initial=0))
        terms, states = np.zeros(shape, np.int64), np.zeros((*shape, widths.text), np.float16)
        pooled = np.empty((len(numbers), widths.pooled), np.float16)
        for shard, places, local in _by_shard(numbers, self._text_ends):
            part = self._texts[shard]
            pooled[places] = part.pooled[local]
            starts, stops = part.offsets[local].tolist(), part.offsets[local + 1].tolist()
            for place, start, stop in zip(places.tolist(), starts, stops):  # twice as fast as one array of indices
                terms[place, : stop - start] = part.terms[start:stop]
                states[place, : stop - start] = part.states[start:stop]
        mask = np.arange(shape[1]) < lengths[:, None]
        return TextFeatures(*map(torch.from_numpy, (terms, mask, states, pooled)))


def _rows(rows: Sequence[int] | np.ndarray | Tensor, stop: int, what: str) -> np.ndarray:
    numbers = np.asarray(rows)
    numbers = numbers.astype(np.int64) if numbers.size == 0 else numbers
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise IndexError(f"rows of {what}s: give a list of whole numbers")
    if numbers.size and not (0 <= numbers.min() and numbers.max() < stop):
        raise IndexError(f"{what} {numbers.min()} or {numbers.max()}: there are {stop}, from 0")
    return numbers


def _by_shard(rows: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, places in `rows`, rows within the shard) of each shard that has some of the rows."""
    shard_of = np.searchsorted(ends, rows, side="right")
    order = np.argsort(shard_of, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(shard_of[order])) + 1) if len(rows) else ():
        shard = int(shard_of[places[0]])
        yield shard, places, rows[places] - (int(ends[shard - 1]) if shard else 0)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64, copy=False)


def _number(value: object, least: int, most: int = 1 << 48) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{one_line(value)} is not a whole number from {least} to {most}")
    return value
