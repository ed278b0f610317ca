"""Photos and captions through frozen towers into a folder of shards: `lexlip cache`.

A shard is written whole or not at all, so a killed run goes on at the first missing one, and any number of processes
share the work through the folder alone. What a shard holds depends on nothing but the facts in features.json.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from lexlip.encode.shards import FACTS as CLAIM
from lexlip.encode.shards import LOCK, ShardFolder, ShardPlan, refuse_other
from lexlip.encode.vectors import decoded_batches
from lexlip.errors import FeaturesError
from lexlip.features import layout
from lexlip.features.cost import PhotoPixels, estimate
from lexlip.features.data import Pairs, Photos
from lexlip.features.layout import FACTS, KINDS, TOKENIZER, Widths, fixed
from lexlip.models.towers import ImageTower, TextTower
from lexlip.utils.devices import in_parts
from lexlip.utils.files import write_json
from lexlip_data.errors import one_line
from lexlip_data.loading.unknown_words import sample_captions, unknown_warning
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped

log = logging.getLogger(__name__)

BATCH_SIZE = 64
SHARD_ROWS = 4096  # photos or captions: what a killed process loses at most
_SHARD_BYTES = 256 << 20  # of photos that have many tokens a shard has fewer
_LARGEST = float(torch.finfo(torch.float16).max)
Batches = Iterator[tuple[pa.RecordBatch, list[Skipped]]]


@dataclass(frozen=True)
class Cached:
    """What a call did, and what is there now.

    Attributes:
        photos, captions: of all splits.
        written: photos and captions of the shards that this call wrote.
        photos_per_second: of those that this call wrote; 0 without.
        skipped: photos and captions that were left out; None while other processes have shards to write.
    """

    photos: int
    captions: int
    written: int
    photos_per_second: float
    skipped: int | None

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.skipped is not None


def write_features(
    folder: str | Path,
    image: ImageTower,
    text: TextTower,
    data: Mapping[str, Pairs],
    *,
    batch_size: int = BATCH_SIZE,
    shard_rows: int = SHARD_ROWS,
    workers: int = 0,
    rules: Rules = USUAL_RULES,
    process: tuple[int, int] = (0, 1),
    progress: bool = False,
    tell: Callable[[str], object] | None = None,
) -> Cached:
    """Write what towers see of each split's photos and captions; shards that are there stay.

    Args:
        folder: a new one, or one that the same towers, data and arguments began.
        image, text: towers, on their devices.
        data: split -> its photos and captions, from `read_data`.
        batch_size: photos or captions at once.
        shard_rows: photos or captions of a shard, at most.
        workers: processes that decode photos; 0: this one does.
        rules: how many photos or captions may be left out because they cannot be read.
        process: number of this process and how many there are: of 4, number 1 writes shards 1, 5, 9, ...
        progress: whether to draw bars.
        tell: gets one line on what it will cost, before it starts; None: the cost is not measured.

    Raises:
        FeaturesError: a number below 1, or a tower gives a number that float16 cannot hold.
        EncodingError: the folder holds something else, or too much was left out.
        DataError: the processes that decode ended.
    """
    for name, value, most in (("batch size", batch_size, None), ("shard rows", shard_rows, layout.MOST_ROWS)):
        if value < 1 or (most and value > most):
            raise FeaturesError(f"{name} {value}: from 1 up" + (f" to {most:,}" if most else ""))
    widths = Widths(image.tokens, image.width, text.width, text.pooled_width)
    bytes_per_photo = 2 * widths.tokens * widths.image
    rows = {"images": max(1, min(shard_rows, _SHARD_BYTES // bytes_per_photo)), "texts": shard_rows}
    facts = {
        "format": layout.FORMAT,
        "image": image.facts(),
        "text": text.facts(),
        "widths": asdict(widths),
        "terms": len(text.lexicon),
        "splits": {
            name: {"images": len(pairs), "texts": len(pairs.caption_image), "data": pairs.fingerprint()}
            for name, pairs in data.items()
        },
        "batch_size": batch_size,
        "shard_rows": rows,
    }
    run = claim(Path(folder), facts, text)
    for name, pairs in data.items():
        if warning := unknown_warning(sample_captions(pairs.sources), text.lexicon, f"split {name}"):
            log.warning("%s", warning)
    parts = [
        Part(Path(folder), split, kind, data[split], rows[kind], run, rules, process)
        for split in data
        for kind in KINDS
    ]
    if tell is not None and any(part.missing for part in parts):
        left = {kind: sum(part.rows_missing for part in parts if part.kind == kind) for kind in KINDS}
        cost = estimate(image, text, data, batch_size, workers, left["images"], left["texts"])
        tell(f"{cost}" + (f", of {process[1]} processes this one" if process[1] > 1 else ""))
    photos, seconds = 0, 0.0
    for part in parts:
        started = time.perf_counter()
        with tqdm(
            total=part.rows, initial=part.rows - part.rows_missing, disable=not progress,
            desc=f"{part.split} {part.kind}", unit={"images": " photos", "texts": " captions"}[part.kind],
        ) as bar:  # fmt: skip
            if part.kind == "images":
                batches = images_of(image, part, widths, batch_size, workers, bar.update)
            else:
                batches = texts_of(text, part, widths, batch_size, bar.update)
            for shard in part.missing:
                part.folder.write_batches(shard, islice(batches, 1), widths.schema(part.kind))
        if part.kind == "images":
            photos, seconds = photos + part.rows_missing, seconds + time.perf_counter() - started
    skipped = [part.folder.finish(part.pairs.left_out if part.kind == "images" else []) for part in parts]
    return Cached(
        photos=sum(map(len, data.values())),
        captions=sum(len(pairs.caption_image) for pairs in data.values()),
        written=sum(part.rows_missing for part in parts),
        photos_per_second=photos / seconds if photos else 0.0,
        skipped=None if None in skipped else sum(number or 0 for number in skipped),
    )


def claim(folder: Path, facts: dict, text: TextTower) -> str:
    """Begin a folder, or find that the same facts began it; gives the name of the run, which follows from the facts.

    Raises:
        EncodingError: other facts began it.
        FeaturesError: its features.json cannot be read, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".cache.lock"):
            return _claim(folder, facts, text)
    except OSError as error:
        raise FeaturesError(f"{folder} cannot be written to ({one_line(error)})") from error


def _claim(folder: Path, facts: dict, text: TextTower) -> str:
    path = folder / FACTS
    for left in folder.glob(".tokenizer-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=folder) as draft:
        saved = Path(draft, TOKENIZER)
        text.lexicon.save_pretrained(saved)
        facts = json.loads(json.dumps({**facts, "vocabulary": layout.vocabulary_hash(text.lexicon)}))
        run = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        if path.exists():
            refuse_other(folder, _flat(layout.read_facts(folder)), _flat(facts))
        if not (folder / TOKENIZER).is_dir():
            saved.rename(folder / TOKENIZER)
        if not path.exists():
            write_json({**facts, "run": run}, path)
    return run


def _flat(facts: object, name: str = "") -> dict[str, str]:
    """Nested facts by one name each, for a message that names what differs."""
    if isinstance(facts, list):
        facts = dict(enumerate(facts))
    if not isinstance(facts, dict):
        text = str(facts)
        short = hashlib.blake2b(text.encode(errors="replace"), digest_size=4).hexdigest()
        return {name: text if len(text) <= 100 else f"{one_line(text, 80)} ({short})"}
    flat = {f"{name} names".strip(): ", ".join(map(str, facts))}
    for key, value in facts.items():
        flat |= _flat(value, f"{name} {key}".strip())
    flat.pop("names", None)  # of the top, where "run" is in one and not in the other
    return flat


class FeatureFolder(ShardFolder):
    """Shards with their size and checksum beside them; the folder is claimed for a run, or was by the same."""

    def __init__(self, path: Path, plan: ShardPlan, run: str, rules: Rules):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        super().__init__(path, plan, run, rules, lock)
        facts = {"features": run, "run": run}
        with lock:
            if not (path / CLAIM).exists():
                write_json(facts, path / CLAIM)
            elif not self._is_claimed():
                raise FeaturesError(f"{path} holds features of another run; name a new folder with --out")

    def publish(self, shard: int, draft: Path, skipped: list[Skipped]) -> None:
        write_json(layout.digest_of(draft), self.shard(shard).with_suffix(".json"))
        super().publish(shard, draft, skipped)


class Part:
    """A split's images or texts: its shards, and those that this process has to write."""

    def __init__(
        self, folder: Path, split: str, kind: str, pairs: Pairs, shard_rows: int, run: str, rules: Rules,
        process: tuple[int, int],
    ):  # fmt: skip
        self.split, self.kind, self.pairs = split, kind, pairs
        documents = len(pairs) if kind == "images" else len(pairs.caption_image)
        self.plan = ShardPlan(documents, shard_rows, shard_rows)
        name = f"{run}/{split}/{kind}"
        self.folder = FeatureFolder(layout.part_folder(folder, split, kind), self.plan, name, rules)
        mine = range(process[0], self.plan.shards, process[1])
        self.missing = [shard for shard in mine if not self.folder.shard(shard).exists()]
        self.rows = sum(map(self.plan.size, mine))
        self.rows_missing = sum(map(self.plan.size, self.missing))

    def windows(self) -> list[tuple[int, int]]:
        """First row and the one after the last, of each missing shard."""
        return [window for shard in self.missing for window in self.plan.windows(shard)]


def images_of(
    tower: ImageTower, part: Part, widths: Widths, batch_size: int, workers: int, done: Callable[[int], object]
) -> Batches:
    """The record batch of each missing shard of photos, and what was left out of it."""
    windows, schema = part.windows(), widths.schema("images")
    batches = (rows for window in windows for rows in _batches(*window, batch_size))
    photos: Any = Photos(part.pairs)
    decoded = decoded_batches(photos, PhotoPixels(tower), batches, workers)
    for window in windows:
        numbers, ids, skipped = [], [], []
        features = [np.zeros((0, widths.tokens * widths.image), np.float16)]
        for rows in _batches(*window, batch_size):
            batch = next(decoded)
            skipped += [item for item in batch if isinstance(item, Skipped)]
            good = [item for item in batch if not isinstance(item, Skipped)]
            if good:
                names, pixels = zip(*good)
                with torch.inference_mode():
                    given = in_parts(tower.features, torch.stack(pixels), next(tower.parameters()).device)
                numbers += [number for number, _ in names]
                ids += [id for _, id in names]
                features.append(_half(given, (widths.tokens, widths.image), ids[-len(good) :]).reshape(len(good), -1))
            done(len(rows))
        columns = [pa.array(numbers, pa.int64()), pa.array(ids, pa.string()), fixed(np.concatenate(features))]
        yield pa.record_batch(columns, schema=schema), skipped


def texts_of(tower: TextTower, part: Part, widths: Widths, batch_size: int, done: Callable[[int], object]) -> Batches:
    """The record batch of each missing shard of captions, and what was left out of it."""
    schema = widths.schema("texts")
    for window in part.windows():
        items = list(part.pairs.read(*window))
        skipped = [item for item in items if isinstance(item, Skipped)]
        done(len(skipped))
        good = [item for item in items if not isinstance(item, Skipped)]
        by_length = sorted(range(len(good)), key=lambda number: len(good[number][1]))  # little padding in a batch
        terms, states, pooled = ([np.zeros(0)] * len(good) for _ in range(3))
        for some in _batches(0, len(good), batch_size):
            numbers = [by_length[place] for place in some]
            texts = [good[number][1] for number in numbers]
            with torch.inference_mode():
                given = tower.features(texts)
            mask = given.mask.cpu()
            all_states = _half(given.states * given.mask[..., None], (mask.shape[1], widths.text), texts)
            all_pooled = _half(given.pooled, (widths.pooled,), texts)
            for place, number in enumerate(numbers):
                real = mask[place].numpy()
                terms[number] = given.terms[place].cpu().numpy()[real]
                states[number], pooled[number] = all_states[place][real], all_pooled[place]
            done(len(some))
        yield _text_batch(good, terms, states, pooled, widths, schema), skipped


def _text_batch(good, terms, states, pooled, widths: Widths, schema: pa.Schema) -> pa.RecordBatch:
    offsets = pa.array(np.cumsum([0, *map(len, terms)]), pa.int32())
    flat_states = np.concatenate([np.zeros((0, widths.text), np.float16), *states])
    columns = [
        pa.array([image for image, _ in good], pa.int64()),
        pa.array([caption for _, caption in good], pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([np.zeros(0), *terms]).astype(np.int32))),
        pa.ListArray.from_arrays(offsets, fixed(flat_states)),
        fixed(np.stack(pooled) if pooled else np.zeros((0, widths.pooled), np.float16)),
    ]
    return pa.record_batch(columns, schema=schema)


def _batches(start: int, stop: int, size: int) -> list[list[int]]:
    return [list(range(first, min(first + size, stop))) for first in range(start, stop, size)]


def _half(values: Tensor, shape: tuple[int, ...], names: Iterable[str]) -> np.ndarray:
    """(B, *shape) in float16; refuses what it cannot hold, because a cut number would mislead whoever trains on it."""
    if values.shape[1:] != shape:
        raise FeaturesError(
            f"the tower gave features of shape {tuple(values.shape[1:])} for {one_line(next(iter(names)), 80)!r}, "
            f"where others have {shape}"
        )
    largest = values.abs().flatten(1).amax(1) if values.numel() else values.new_zeros(len(values))
    for name, value in zip(names, largest.tolist()):
        if not value <= _LARGEST:  # so that nan is refused too
            raise FeaturesError(
                f"the tower's features of {one_line(name, 80)!r} reach {value:g}, and float16 holds {_LARGEST:,.0f} at "
                "most; take another output of the tower, such as #pooled"
            )
    return values.to("cpu", torch.float16).numpy()
