"""Config -> loaders over a cache of features: what `CaptionDataModule` is for images.

An epoch takes every training image once, with one of its captions; which one follows from (seed, epoch). A batch is
read from memory-mapped files at once, so no loader processes are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lexlip.features.store import FeatureSplit, FeatureStore
from lexlip.models.towers import TextFeatures
from lexlip.train.config import Config
from lexlip_data.errors import DataError
from lexlip_data.loading.batch import Batch
from lexlip_data.loading.run_data import RunData
from lexlip_data.loading.sampler import shard

log = logging.getLogger(__name__)

EVALUATED_AT_ONCE = 256


class FeaturePairs(Dataset):
    """Training images, each with one of its captions: a batch for each list of (epoch, image)."""

    def __init__(self, split: FeatureSplit, seed: int):
        self.split, self.seed = split, seed
        order = np.argsort(split.caption_image, kind="stable")
        counts = np.bincount(split.caption_image, minlength=len(split.image_ids))
        self.images = np.flatnonzero(counts)  # an image whose captions were all left out makes no pair
        self.captions, self.counts = order, counts
        self.first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epoch = keys[0][0]
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, np.random.default_rng([self.seed, epoch]).random(len(self.split.image_ids))
        images = self.images[[index for _, index in keys]]
        number = (self._drawn[1][images] * self.counts[images]).astype(np.int64)
        captions = self.captions[self.first[images] + number]
        ids = self.split.image_ids
        return {
            "image": self.split.images(images),
            **_texts(self.split.texts(captions)),
            "image_id": torch.from_numpy(images),
            "caption_number": torch.from_numpy(number),
            "sample": [("features", str(ids[i]), n) for i, n in zip(images.tolist(), number.tolist(), strict=True)],
            "skipped": [],
        }


class FeatureRows(Dataset):
    """Images or captions of a split for evaluation, by their rows."""

    def __init__(self, split: FeatureSplit, kind: str, rows: np.ndarray):
        self.split, self.kind, self.rows = split, kind, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        rows = self.rows[list(numbers)]
        images = rows if self.kind == "image" else self.split.caption_image[rows]
        what: Batch = {"image": self.split.images(rows)} if self.kind == "image" else _texts(self.split.texts(rows))
        return {
            **what,
            "image_id": torch.from_numpy(images),
            "order": torch.from_numpy(rows),
            "sample": [("features", str(self.split.image_ids[i]), 0) for i in images.tolist()],
        }


def _texts(texts: TextFeatures) -> Batch:
    return {
        "text_ids": texts.terms, "text_mask": texts.mask, "text_states": texts.states, "text_pooled": texts.pooled,
    }  # fmt: skip


class FeatureDataModule(RunData):
    """The data of a run on cached features; the same questions are answered as by `CaptionDataModule`.

    Raises:
        DataError: the cache has no train split, or its images are fewer than a batch.
    """

    def __init__(self, config: Config, store: FeatureStore):
        super().__init__()
        self.config, self.store = config, store
        self.global_batch, self.seed = config.batch_size, config.seed
        self.train_set = FeaturePairs(store.split("train"), config.seed) if "train" in store.splits else None

    def setup(self, stage: str | None = None) -> None:
        """Refuse a stage that has no data."""
        needed = {"fit": "train", "test": "test", "validate": "val"}.get(stage or "")
        if needed and needed not in self.store.splits:
            raise DataError(f"{self.store.folder} has no {needed} split; it has {', '.join(self.store.splits)}")
        if stage == "fit" and "val" not in self.store.splits:
            log.warning("%s has no val split: nothing is validated", self.store.folder)

    def sources(self, split: str) -> dict[str, FeatureSplit]:
        """The split under its name; {} where there is none."""
        return {"features": self.store.split(split)} if split in self.store.splits else {}

    def left_out(self) -> list[str]:
        """Nothing: what could not be read is not in the cache, whose folder lists it."""
        return []

    @property
    def n_pairs(self) -> int:
        """Training images: an epoch takes one caption of each."""
        return len(self.train_set) if self.train_set is not None else 0

    def eval_names(self, split: str) -> list[tuple[str, str]]:
        """(data set, "image" or "text") of each loader, in order."""
        return [("features", kind) for _ in self.sources(split) for kind in ("image", "text")]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_sampler=self.train_sampler, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("test")

    def _eval_loaders(self, name: str) -> list[DataLoader]:
        loaders = []
        for split in self.sources(name).values():
            for kind, count in (("image", len(split.image_ids)), ("text", len(split.captions))):
                rows = FeatureRows(split, kind, np.arange(count)[shard(count, self.rank, self.world_size)])
                size = self.config.eval_batch_size or EVALUATED_AT_ONCE
                loaders.append(DataLoader(rows, batch_size=size, shuffle=False, collate_fn=_as_it_is))
        return loaders


def _as_it_is(batch: Any) -> Any:
    return batch
