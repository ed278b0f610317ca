"""The photos and captions that are cached: by split, each photo once, with its captions.

A split is a list of sources as `lexlip_data` opens them. Costs 32 bytes per caption and reads every caption once, for
the fingerprint: some seconds per million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lexlip.errors import FeaturesError
from lexlip_data.convert.annotations import read_karpathy
from lexlip_data.convert.readers import read_folder
from lexlip_data.errors import BrokenSample, one_line
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.files import is_file
from lexlip_data.sources.registry import SPLITS, open_split, require_data_set
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.source import Source, hash_id, locate
from lexlip_data.sources.table import CaptionTable
from lexlip_data.sources.tsv import read_columns

HELD_OUT = 0.1  # of the photos, where no validation split is given


class Pairs:
    """Photos 0..N-1 of a split, and captions 0..M-1. Rows that repeat an image_id are one photo, the first of them.

    Attributes:
        caption_image: (M,) int64, the photo of each caption.
        left_out: rows of the files that are no photo and no caption.
    """

    def __init__(self, sources: Sequence[Source], photos: np.ndarray | None = None):
        """
        Args:
            photos: numbers of the photos to keep, ascending; None: all.
        """
        self.sources = list(sources)
        self.left_out: list[Skipped] = [item for source in self.sources for item in source.left_out]
        self._ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)
        rows = int(self._ends[-1]) if len(self._ends) else 0
        self._hashes = np.fromiter(
            (hash_id(self._at(row)[0].name, self.row_name(row)) for row in range(rows)), np.int64
        )
        first, photo_of_row = np.unique(self._hashes, return_index=True, return_inverse=True)[1:]
        in_order = np.argsort(first)
        self._rows = first[in_order]  # of each photo, its first row
        photo_of_row = np.argsort(in_order)[photo_of_row.reshape(-1)]
        if photos is not None:
            self._rows = self._rows[photos]
            renumbered = np.full(len(first), -1)
            renumbered[photos] = np.arange(len(photos))
            photo_of_row = renumbered[photo_of_row]
        counts = np.concatenate([np.zeros(0, np.int64), *(source.caption_counts for source in self.sources)])
        self._caption_row = np.repeat(np.arange(rows), counts)
        self._caption_number = np.arange(len(self._caption_row)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.caption_image = photo_of_row[self._caption_row]
        kept = self.caption_image >= 0
        if not kept.all():
            columns = self._caption_row, self._caption_number, self.caption_image
            self._caption_row, self._caption_number, self.caption_image = (column[kept] for column in columns)

    def _at(self, row: int) -> tuple[Source, int]:
        k, local = locate(self._ends, row)
        return self.sources[k], local

    def row_name(self, row: int) -> str:
        """The image_id of a row; where it has none, file and row."""
        source, i = self._at(row)
        try:
            return source.image_id(i)
        except BrokenSample:
            return source.where(i)

    def image(self, photo: int) -> tuple[str, bytes | memoryview]:
        """Id and encoded bytes. Raises BrokenSample if either cannot be read."""
        source, i = self._at(int(self._rows[photo]))
        return source.image_id(i), source.image_bytes(i)

    def image_name(self, photo: int) -> str:
        return self.row_name(int(self._rows[photo]))

    def __len__(self) -> int:
        return len(self._rows)

    def caption(self, number: int) -> str:
        """Raises BrokenSample if it is no text, empty or too long."""
        source, i = self._at(int(self._caption_row[number]))
        return source.caption(i, int(self._caption_number[number]))

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str] | Skipped]:
        """(photo, caption) of captions start to stop - 1, or why there is none."""
        for number in range(start, stop):
            try:
                yield int(self.caption_image[number]), self.caption(number)
            except BrokenSample as error:
                row = int(self._caption_row[number])
                id = f"{self.row_name(row)}#{int(self._caption_number[number])}"
                source, i = self._at(row)
                yield Skipped(id, source.where(i), getattr(error, "kind", "broken"), one_line(error))

    def fingerprint(self) -> str:
        """Differs where photos or captions were added, removed or renamed; what photos show is not looked at."""
        digest = hashlib.blake2b(self._hashes[self._rows].tobytes(), digest_size=16)
        digest.update(np.ascontiguousarray(self.caption_image, np.int64).tobytes())
        for item in self.read(0, len(self.caption_image)):
            digest.update(str(item if isinstance(item, Skipped) else item[1]).encode(errors="replace") + b"\0")
        return digest.hexdigest()

    def divided(self, share: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """(the rest, a share of the photos), each photo with all its captions; chosen by a hash of its id.

        Raises:
            FeaturesError: a share that is not between 0 and 1, or that leaves nothing on one side.
        """
        if not 0 < share < 1:
            raise FeaturesError(f"--held-out {share:g}: a fraction between 0 and 1, such as {HELD_OUT}")
        count = max(1, round(share * len(self)))
        if count >= len(self):
            raise FeaturesError(
                f"{len(self)} photos are too few to hold out a share of {share:g} for validation; give --val, or "
                "--held-out 0"
            )
        order = np.argsort([hash_id(f"held out {seed}", str(value)) for value in self._hashes[self._rows].tolist()])
        held_out, rest = np.sort(order[:count]), np.sort(order[count:])
        return Pairs(self.sources, rest), Pairs(self.sources, held_out)


class Photos:
    """The photos of `Pairs` for `lexlip.encode.vectors.decoded_batches`; each comes as (photo, id)."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, i: int):
        id, data = self.pairs.image(i)
        return (i, id), data

    def name(self, i: int) -> str:
        return self.pairs.image_name(i)


def read_data(
    data: Sequence[str | Path],
    val: str | Path | None = None,
    test: str | Path | None = None,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
    data_root: str | Path | None = None,
    images: str | Path | None = None,
    rules: Rules = USUAL_RULES,
) -> dict[str, Pairs]:
    """Open what is to be cached: split -> its photos and captions, train first.

    Args:
        data: tables (title, filepath, optionally image_id and split), Karpathy's JSON with its splits (restval counts
            as train), Arrow files; with `data_root` also names of data sets with all their splits.
        val, test: files of these splits.
        held_out: share of the training photos that become "val" where there is none; 0: none.
        seed: of the choice.
        data_root: folder of the data sets that are named.
        images: folder that file paths start from; None: the table's own, or looked for near the JSON.
        rules: how many rows may be bad, and where photos may lie besides the table's folder.

    Raises:
        DataError: a file is absent or malformed, or too many of its rows are bad.
        FeaturesError: no photo of a split, or a share that cannot be held out.
    """
    found: dict[str, list[Source]] = {}
    for entry, split in [*((entry, "train") for entry in data), (val, "val"), (test, "test")]:
        if entry is None:
            continue
        for source in _sources(str(entry), split, data_root, images, rules):
            name = {"restval": "train"}.get(source.split, source.split)
            if split == "train" or name == split:  # a file given for val may hold other splits too
                found.setdefault(name, []).append(source)
    ordered = sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    splits = {name: Pairs(found[name]) for name in ordered}
    for name in ("train", *splits):
        if not len(splits.get(name, ())):
            raise FeaturesError(f"{', '.join(map(str, data))}: no photo of split {name}")
    if "val" not in splits and held_out != 0:
        rest, part = splits.pop("train").divided(held_out, seed)
        splits = {"train": rest, "val": part, **splits}
    return splits


def _sources(
    entry: str, split: str, data_root: str | Path | None, images: str | Path | None, rules: Rules
) -> Sequence[Source]:
    if data_root is not None and not is_file(entry):
        require_data_set(data_root, entry)
        return [source for name in SPLITS for source in open_split(data_root, entry, name, rules=rules)]
    path = Path(entry)
    if path.suffix == ".arrow":
        return [ArrowSource("data", split, [path])]
    if path.suffix == ".json":
        return read_karpathy(path, images, "data", rules=rules)
    rows = read_columns(path, rules)
    if "split" in rows.columns:
        return read_folder(path, "data", None if split == "train" else split, images, rules)
    return [CaptionTable("data", split, rows, path.parent if images is None else images, path, rules)]
