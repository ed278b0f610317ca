"""Captioned pictures -> Arrow files that ViLT, METER and `lexlip_data.arrow` read.

Every picture is read and fully decoded once, in `workers` processes (some 5 ms each for a photo of 640x480); what is
stored are the file's own bytes. Memory stays at a few pictures per worker and one record batch. A shard appears under
its name only when it is complete, so a run that was cut off goes on where it stopped.

To convert one shard per machine, `write_split` would only have to take the numbers of the shards it writes: a shard
is already a function of the table and its number alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from lexlip_data.arrow import ArrowSource
from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.pictures import open_image
from lexlip_data.table import CaptionTable

FORMAT = 1  # raised when the same table gives other files
BATCH_ROWS, BATCH_BYTES = 256, 64 << 20  # a record batch ends at either: a random read then maps little
_CHUNK = 8  # pictures per task: few, because a picture may be large
_METADATA = b"lexlip"


@dataclass(frozen=True)
class Skipped:
    """A picture that is not in the files, and why. kind: missing, broken, or unknown (from an earlier run)."""

    image_id: str
    path: str
    kind: str
    reason: str


@dataclass
class Report:
    """What `write_split` did."""

    prefix: str
    shards: list[Path] = field(default_factory=list)
    reused: int = 0  # shards that were finished before
    pictures: int = 0
    pairs: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    empty_rows: int = 0  # rows without a caption or a file name

    def count(self, kind: str) -> int:
        return sum(item.kind == kind for item in self.skipped)


def read_file(path: str) -> bytes:
    """A picture's file as it is."""
    return Path(path).read_bytes()


class PictureReader:
    """Reads and checks pictures in worker processes; results come in the order asked, few are in flight.

    With workers=0 all is done in this process.
    """

    def __init__(self, workers: int = 0, read: Callable[[str], bytes] = read_file):
        """
        Args:
            read: path -> encoded bytes; a module-level function or a partial of one, as it travels to the workers.
        """
        if workers < 0:
            raise DataError(f"workers {workers}: must be 0 or more")
        self.workers, self.read = workers, read
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> PictureReader:
        if self.workers:
            # spawn: forking a process that runs threads, as pyarrow's does, can hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, paths: Iterable[str]) -> Iterator[tuple[bytes | None, str, str]]:
        """For each path (bytes, "", ""), or (None, "missing" or "broken", reason)."""
        if self._pool is None:
            for path in paths:
                yield _check(self.read, path)
            return
        chunks = _chunks(paths, _CHUNK)
        waiting: deque = deque()
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(_check_all, self.read, chunk))
                if len(waiting) > 2 * self.workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError("a reading process died, often for want of memory: use fewer --workers") from error


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _check_all(read: Callable[[str], bytes], paths: list[str]) -> list[tuple[bytes | None, str, str]]:
    return [_check(read, path) for path in paths]


def _check(read: Callable[[str], bytes], path: str) -> tuple[bytes | None, str, str]:
    try:
        data = read(path)
    except OSError as error:
        return None, "missing", error.strerror or str(error)
    try:
        open_image(data)
    except BrokenImage as error:
        return None, "broken", str(error)
    return data, "", ""


def write_split(
    table: CaptionTable,
    out: str | Path,
    prefix: str,
    reader: PictureReader,
    shard_images: int | None = None,
    numbered: bool = False,
    overwrite: bool = False,
    options: dict | None = None,
    progress: bool = True,
) -> Report:
    """Write one split as `{prefix}.arrow`, or as `{prefix}_{i}.arrow` where it takes several shards.

    Args:
        table: the pictures and their captions.
        out: folder; made if absent.
        reader: an entered PictureReader.
        shard_images: pictures listed per shard; None: all in one.
        numbered: number a single shard too.
        overwrite: remove the prefix's files first. Else finished shards are kept, and files that other data or
            options made are refused.
        options: whatever else decides the files' content; part of the fingerprint.
        progress: show a bar.
    Returns:
        the report; skipped pictures are also listed in `{prefix}_skipped.tsv`.
    Raises:
        DataError: files of other data or options are there, or not one picture could be read.
    """
    if shard_images is not None and shard_images < 1:
        raise DataError(f"shard_images {shard_images}: must be at least 1")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if len(table) == 0:
        raise DataError(f"{table.origin}: no row with a caption and a file for data set {table.name}, {table.split}")
    size = shard_images or len(table)
    starts = range(0, len(table), size)
    if len(starts) == 1 and not numbered:
        paths = [out / f"{prefix}.arrow"]
    else:
        paths = [out / f"{prefix}_{k}.arrow" for k in range(len(starts))]
    fingerprint = _fingerprint(table, size, options or {})
    finished = _finished(out, prefix, paths, fingerprint, overwrite)

    report = Report(prefix, paths, empty_rows=table.empty_rows)
    list_path = out / f"{prefix}_skipped.tsv"
    reasons = _read_skipped(list_path) if finished else {}
    bar = tqdm(total=len(table), desc=prefix, unit="picture", disable=None if progress else True)
    with bar:
        for k, (path, start) in enumerate(zip(paths, starts, strict=True)):
            rows = range(start, min(start + size, len(table)))
            if path in finished:
                _count_finished(report, path, table, rows, reasons)
                bar.update(len(rows))
                continue
            metadata = {
                "format": FORMAT, "fingerprint": fingerprint, "name": table.name, "split": table.split,
                "shard": k, "shards": len(paths), **(options or {}),
            }  # fmt: skip
            _write_shard(report, path, table, rows, reader, metadata, list_path, bar)
    if report.pictures == 0:
        for path in paths:
            path.unlink(missing_ok=True)
        first = report.skipped[0]
        raise DataError(
            f"{prefix}: not one of {len(table)} pictures could be read, e.g. {first.path} ({first.reason}); "
            "check the folder that the pictures are looked for in"
        )
    _write_skipped(list_path, report.skipped)
    return report


def _fingerprint(table: CaptionTable, size: int, options: dict) -> str:
    parts = [FORMAT, table.fingerprint(), table.name, table.split, _probe(table), size, options]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _probe(table: CaptionTable) -> list[int]:
    """Sizes of a few files: other pictures under the same names are noticed, but the folder may move."""
    files = [table.path(i) for i in sorted({len(table) * k // 16 for k in range(16)})]
    return [file.stat().st_size if file.is_file() else -1 for file in files]


def _finished(out: Path, prefix: str, planned: list[Path], fingerprint: str, overwrite: bool) -> set[Path]:
    """The planned files that are there already. Anything else under the prefix is removed (overwrite) or refused."""
    pattern = re.compile(re.escape(prefix) + r"(_\d+)?\.arrow")
    there = sorted(path for path in out.iterdir() if pattern.fullmatch(path.name))
    if overwrite:
        for path in there:
            path.unlink()
        return set()
    for path in there:
        if path not in planned or _fingerprint_of(path) != fingerprint:
            raise DataError(
                f"{path} was made from other data or options, or by another program: give --overwrite to replace "
                f"every {prefix}*.arrow in {out}, or another --out"
            )
    return set(there)


def _fingerprint_of(path: Path) -> str | None:
    try:
        with pa.memory_map(str(path), "r") as file:
            return json.loads((pa.ipc.open_file(file).schema.metadata or {})[_METADATA])["fingerprint"]
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def _count_finished(
    report: Report, path: Path, table: CaptionTable, rows: range, reasons: dict[str, tuple[str, str]]
) -> None:
    shard = ArrowSource(table.name, table.split, [path])
    kept = {shard.image_id(i) for i in range(len(shard))}
    report.reused += 1
    report.pictures += len(shard)
    report.pairs += int(shard.caption_counts.sum())
    for i in rows:
        image_id = table.image_id(i)
        if image_id not in kept:
            kind, reason = reasons.get(image_id, ("unknown", "skipped by an earlier run"))
            report.skipped.append(Skipped(image_id, str(table.path(i)), kind, reason))


def _write_shard(
    report: Report,
    path: Path,
    table: CaptionTable,
    rows: range,
    reader: PictureReader,
    metadata: dict,
    list_path: Path,
    bar: tqdm,
) -> None:
    fields = [
        ("image", pa.binary()),
        ("caption", pa.list_(pa.string())),
        ("image_id", pa.string()),
        ("split", pa.string()),
    ]
    if table.has_long_captions:
        fields.append(("long_caption", pa.list_(pa.string())))
    schema = pa.schema(fields, metadata={_METADATA: json.dumps(metadata).encode()})
    # The same name every time: what a killed run left is overwritten, never piled up.
    partial = path.with_name(f".{path.name}.partial")
    pictures, pairs, skipped = 0, 0, []
    try:
        with open(partial, "wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                batch: dict[str, list] = {name: [] for name in schema.names}
                held = 0
                for i, (data, kind, reason) in zip(rows, reader.map(str(table.path(i)) for i in rows), strict=True):
                    bar.update()
                    image_id = table.image_id(i)
                    if data is None:
                        skipped.append(Skipped(image_id, str(table.path(i)), kind, reason))
                        continue
                    captions = table.captions(i)
                    row = {"image": data, "caption": captions, "image_id": image_id, "split": table.split}
                    row["long_caption"] = table.long_captions(i)
                    for name, cells in batch.items():
                        cells.append(row[name])
                    held += len(data)
                    pictures += 1
                    pairs += len(captions)
                    if len(batch["image"]) == BATCH_ROWS or held >= BATCH_BYTES:
                        writer.write_batch(pa.RecordBatch.from_pydict(batch, schema=schema))
                        batch, held = {name: [] for name in schema.names}, 0
                if batch["image"]:
                    writer.write_batch(pa.RecordBatch.from_pydict(batch, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        report.pictures += pictures
        report.pairs += pairs
        report.skipped += skipped
        # Before the shard: once it is there, the reasons for what it lacks are known too.
        _write_skipped(list_path, report.skipped)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _write_skipped(path: Path, skipped: list[Skipped]) -> None:
    if not skipped:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["image_id", "filepath", "kind", "reason"])
        rows.writerows([item.image_id, item.path, item.kind, item.reason] for item in skipped)
    os.replace(partial, path)


def _read_skipped(path: Path) -> dict[str, tuple[str, str]]:
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["image_id"]: (row["kind"], row["reason"]) for row in rows}
