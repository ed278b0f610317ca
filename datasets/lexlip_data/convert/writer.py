"""Captioned pictures -> Arrow files that ViLT, METER and `lexlip_data.sources.arrow` read.

Every picture is read and fully decoded once, in worker processes; what is stored are the file's own bytes. Memory
stays at the pictures in flight and one record batch. A shard appears under its name only when it is complete and not
too much of it is bad, so a run that was cut off or refused goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from lexlip_data.convert.reading import PictureReader
from lexlip_data.convert.shard_plan import FORMAT, Plan, make_plan
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.files import sync_folder
from lexlip_data.sources.ipc import CHECKSUM, METADATA, row_checksum
from lexlip_data.sources.skipped import ROW_KINDS, Skipped, list_path, list_paths, read_lists, write_list
from lexlip_data.sources.table import CaptionTable

BATCH_ROWS, BATCH_BYTES = 256, 64 << 20  # a record batch ends at either: a random read then maps little


@dataclass
class Report:
    """What `write_split` did."""

    prefix: str
    shards: list[Path] = field(default_factory=list)
    reused: int = 0  # shards that were finished before
    pictures: int = 0
    pairs: int = 0
    left_out: list[Skipped] = field(default_factory=list)  # rows of the table
    skipped: list[Skipped] = field(default_factory=list)  # pictures
    listed_in: Path | None = None

    def count(self, kind: str) -> int:
        return sum(item.kind == kind for item in (*self.left_out, *self.skipped))


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
    shards: int | None = None,
    only: int | None = None,
) -> Report:
    """Write one split as `{prefix}.arrow`, or as `{prefix}_{i}.arrow` where it takes several shards.

    Args:
        table: the pictures and their captions; its rules say how many bad pictures are too many.
        out: folder; made if absent.
        reader: an entered PictureReader.
        shard_images: pictures listed per shard.
        numbered: number a single shard too.
        overwrite: remove the prefix's files first. Else finished shards are kept, and files that other data or
            options made are refused.
        options: whatever else decides the files' content; part of the fingerprint.
        progress: show a bar.
        shards: how many shards, instead of shard_images; neither: all in one.
        only: write just this shard, which another machine need not know of; with `shards`.
    Returns:
        the report; what was left out is also listed in `{prefix}_skipped.tsv`, or `{prefix}_{only}_skipped.tsv`.
    Raises:
        DataError: files of other data or options are there, not one picture could be read, too many could not, or
            the disk is full.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if len(table) == 0:
        raise DataError(f"{table.origin}: no row with a caption and a file for data set {table.name}, {table.split}")
    if only is not None and not (shards and 0 <= only < shards):
        raise DataError(f"shard {only} of {shards}: must be from 0 to one less than the number of shards")
    plan = make_plan(table, out, prefix, shard_images, shards, numbered, options)
    mine = range(len(plan.paths)) if only is None else [only]
    finished = plan.finished(mine, overwrite)
    report = Report(prefix, [plan.paths[k] for k in mine], listed_in=list_path(out, prefix, only))
    if only in (None, 0):  # the table's own rows belong to no shard
        report.left_out = table.left_out
    held = {k for k in mine if k not in finished and plan.held_back(k)}
    earlier = read_lists(out, prefix) if finished or held else ()
    earlier = {item.image_id: item for item in earlier if item.kind not in ROW_KINDS}
    so_far: list[Path] = []
    total = sum(len(plan.rows(k)) for k in mine)
    with tqdm(total=total, desc=prefix, unit="picture", disable=None if progress else True) as bar:
        for k in mine:
            if k in finished or k in held:
                path = plan.paths[k] if k in finished else plan.partial(k)
                _count_finished(report, path, table, plan.rows(k), earlier)
                bar.update(len(plan.rows(k)))
            else:
                metadata = {
                    "format": FORMAT, "fingerprint": plan.fingerprint, "name": table.name, "split": table.split,
                    "shard": k, "shards": len(plan.paths), "listed": len(plan.rows(k)), **(options or {}),
                }  # fmt: skip
                _write_shard(report, plan, k, table, reader, metadata, bar)
            for i in plan.rows(k) if earlier else ():
                earlier.pop(table.image_id(i), None)
            # Before the shard gets its name: once it is there, the reasons for what it lacks are known too.
            _list(report, earlier.values())
            so_far += [plan.paths[k], plan.partial(k)]
            _refuse_bad(report, table, total, so_far)
            if k not in finished:
                os.replace(plan.partial(k), plan.paths[k])
                sync_folder(out)
    if only is None:
        for path in set(list_paths(out, prefix)) - {report.listed_in}:
            path.unlink()  # of shards that were converted alone before; the list of the whole split holds them too
    return report


def _refuse_bad(report: Report, table: CaptionTable, total: int, so_far: list[Path]) -> None:
    """Raise a DataError where too many of `total` pictures are bad.

    What is written is kept, but not under its name; unless there is not one picture in it.
    """
    bad, allowed = len(report.skipped), table.rules.allowed(total)
    nothing = report.pictures == 0 and bad == total > 0
    if bad <= allowed and not nothing:
        return
    example = f"{one_line(report.skipped[0].path)} ({one_line(report.skipped[0].reason)})"
    if report.pictures == 0:
        for path in so_far:
            path.unlink(missing_ok=True)
        raise DataError(
            f"{report.prefix}: not one of {bad} pictures could be read, e.g. {example}; "
            "check the folder that the pictures are looked for in"
        )
    raise DataError(
        f"{report.prefix}: {bad:,} of {total:,} pictures cannot be used, more than the {allowed:,} that "
        f"--max-bad-share {table.rules.max_bad_share:g} allows, e.g. {example}; so far {report.listed_in} lists them. "
        "Repair them and convert with --overwrite, or give a larger --max-bad-share: what is done is kept"
    )


def _count_finished(report: Report, path: Path, table: CaptionTable, rows: range, earlier: dict[str, Skipped]) -> None:
    shard = ArrowSource(table.name, table.split, [path])
    kept = {shard.image_id(i) for i in range(len(shard))}
    report.reused += 1
    report.pictures += len(shard)
    report.pairs += int(shard.caption_counts.sum())
    for i in rows:
        image_id = table.image_id(i)
        if image_id not in kept:
            unknown = Skipped(image_id, str(table.path(i)), "unknown", "skipped by an earlier run")
            report.skipped.append(earlier.get(image_id, unknown))


def _write_shard(
    report: Report, plan: Plan, k: int, table: CaptionTable, reader: PictureReader, metadata: dict, bar: tqdm
) -> None:
    """Write shard k under its partial name and add it to the report; nothing is left where that fails."""
    fields = [
        ("image", pa.binary()),
        ("caption", pa.list_(pa.string())),
        ("image_id", pa.string()),
        ("split", pa.string()),
    ]
    if table.has_long_captions:
        fields.append(("long_caption", pa.list_(pa.string())))
    schema = pa.schema(fields, metadata={METADATA: json.dumps(metadata).encode()})
    rows, partial = plan.rows(k), plan.partial(k)
    try:
        with open(partial, "wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                batch = _Batch(writer, schema)
                found = reader.map((str(table.path(i)) for i in rows), table.roots)
                for i, (data, kind, reason) in zip(rows, found, strict=True):
                    bar.update()
                    image_id, captions = table.image_id(i), table.captions(i)
                    if data is None:
                        report.skipped.append(Skipped(image_id, str(table.path(i)), kind, reason))
                        continue
                    batch.add(data, captions, image_id, table.split, table.long_captions(i))
                    report.pictures += 1
                    report.pairs += len(captions)
                batch.write()
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _no_room(partial, error) from error
        raise


def _no_room(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}); finished shards are kept: make room and give the same "
        "command again"
    )


class _Batch:
    """Collects rows and writes them as one record batch when they are many or large."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema):
        self.writer, self.schema = writer, schema
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list] = {name: [] for name in self.schema.names}
        self.held, self.crc = 0, 0

    def add(self, image: bytes, captions: list[str], image_id: str, split: str, long_captions: list[str]) -> None:
        row = {"image": image, "caption": captions, "image_id": image_id, "split": split, "long_caption": long_captions}
        for name, cells in self.columns.items():
            cells.append(row[name])
        self.crc = row_checksum(self.crc, image, captions, image_id, split, long_captions)
        self.held += len(image)
        if len(self.columns["image"]) == BATCH_ROWS or self.held >= BATCH_BYTES:
            self.write()

    def write(self) -> None:
        if self.columns["image"]:
            batch = pa.RecordBatch.from_pydict(self.columns, schema=self.schema)
            self.writer.write_batch(batch, custom_metadata={CHECKSUM: f"{self.crc:08x}"})
            self._clear()


def _list(report: Report, of_later_shards: Iterable[Skipped]) -> None:
    try:
        write_list(report.listed_in, chain(report.left_out, report.skipped, of_later_shards))
    except OSError as error:
        raise _no_room(report.listed_in, error) from error
