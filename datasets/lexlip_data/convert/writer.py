"""Captioned images -> Arrow files that ViLT, METER and `lexlip_data.sources.arrow` read.

Every image is read and fully decoded once, in worker processes; what is stored are the file's own bytes. Memory
stays at the images in flight and one record batch. A shard appears under its name only when it is complete and not
too much of it is bad, so a conversion that was cut off or refused goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from lexlip_data.convert.image_reader import ImageReader
from lexlip_data.convert.shard_plan import FORMAT, ShardPlan, plan_shards
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.files import sync_folder
from lexlip_data.sources.ipc import CHECKSUM, METADATA, rows_checksum
from lexlip_data.sources.skipped import ROW_KINDS, Skipped, list_path, list_paths, read_lists, write_list
from lexlip_data.sources.table import CaptionTable

BATCH_ROWS, BATCH_BYTES = 256, 64 << 20  # a record batch ends at either: a random read then maps little


@dataclass
class Report:
    """What `write_split` did."""

    prefix: str
    shards: list[Path] = field(default_factory=list)
    reused: int = 0  # shards that were finished before
    images: int = 0
    pairs: int = 0
    left_out: list[Skipped] = field(default_factory=list)  # rows of the table
    skipped: list[Skipped] = field(default_factory=list)  # images
    listed_in: Path | None = None

    def count(self, kind: str) -> int:
        return sum(item.kind == kind for item in (*self.left_out, *self.skipped))


def write_split(
    table: CaptionTable,
    out: str | Path,
    prefix: str,
    image_reader: ImageReader,
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
        table: the images and their captions; its rules say how many bad images are too many.
        out: folder; made if absent.
        image_reader: entered.
        shard_images, shards, numbered, options: see `plan_shards`.
        overwrite: remove the prefix's files first. Else finished shards are kept, and files that other data or
            options made are refused.
        progress: show a bar.
        only: write just this shard, which another machine need not know of; with `shards`.
    Returns:
        the report; what was left out is also listed in `{prefix}_skipped.tsv`, or `{prefix}_{only}_skipped.tsv`.
    Raises:
        DataError: files of other data or options are there, not one image could be read, too many could not, or
            the disk is full.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if len(table) == 0:
        raise DataError(f"{table.origin}: no row with a caption and a file for data set {table.name}, {table.split}")
    if only is not None and not (shards and 0 <= only < shards):
        raise DataError(f"shard {only} of {shards}: must be from 0 to one less than the number of shards")
    plan = plan_shards(table, out, prefix, shard_images, shards, numbered, options)
    mine = range(len(plan.paths)) if only is None else [only]
    done = plan.done(mine, overwrite)
    report = Report(prefix, [plan.paths[k] for k in mine], listed_in=list_path(out, prefix, only))
    if only in (None, 0):  # the table's own rows belong to no shard
        report.left_out = table.left_out
    earlier = read_lists(out, prefix) if done else ()
    earlier = {item.image_id: item for item in earlier if item.kind not in ROW_KINDS}
    so_far: list[Path] = []
    total = sum(len(plan.images(k)) for k in mine)
    with tqdm(total=total, desc=prefix, unit="image", disable=None if progress else True) as bar:
        for k in mine:
            if k in done:
                _count_done(report, done[k], table, plan.images(k), earlier)
                bar.update(len(plan.images(k)))
            else:
                metadata = {
                    "format": FORMAT, "fingerprint": plan.fingerprint, "name": table.name, "split": table.split,
                    "shard": k, "shards": len(plan.paths), "listed": len(plan.images(k)), **(options or {}),
                }  # fmt: skip
                _write_shard(report, plan, k, table, image_reader, metadata, bar)
            for i in plan.images(k) if earlier else ():
                earlier.pop(table.image_id(i), None)
            # Before the shard gets its name: once it is there, the reasons for what it lacks are known too.
            with _room_for(report.listed_in):
                write_list(report.listed_in, chain(report.left_out, report.skipped, earlier.values()))
            so_far += [plan.paths[k], plan.partial(k)]
            _refuse_bad(report, table, total, so_far)
            if done.get(k) != plan.paths[k]:
                os.replace(plan.partial(k), plan.paths[k])
                sync_folder(out)
    if only is None:
        for path in set(list_paths(out, prefix)) - {report.listed_in}:
            path.unlink()  # of shards that were converted alone before; the list of the whole split holds them too
    return report


def _refuse_bad(report: Report, table: CaptionTable, total: int, so_far: list[Path]) -> None:
    """Raise a DataError where too many of `total` images are bad.

    What is written is kept, but not under its name; unless there is not one image in it.
    """
    bad, allowed = len(report.skipped), table.rules.allowed(total)
    if bad <= allowed and not (report.images == 0 and bad == total > 0):
        return
    example = f"{one_line(report.skipped[0].path)} ({one_line(report.skipped[0].reason)})"
    if report.images == 0:
        for path in so_far:
            path.unlink(missing_ok=True)
        raise DataError(
            f"{report.prefix}: not one of {bad} images could be read, e.g. {example}; "
            "check the folder that the images are looked for in"
        )
    raise DataError(
        f"{report.prefix}: {bad:,} of {total:,} images cannot be used, more than the {allowed:,} that "
        f"--max-bad-share {table.rules.max_bad_share:g} allows, e.g. {example}; so far {report.listed_in} lists them. "
        "Repair them and convert with --overwrite, or give a larger --max-bad-share: what is done is kept"
    )


def _count_done(report: Report, path: Path, table: CaptionTable, images: range, earlier: dict[str, Skipped]) -> None:
    shard = ArrowSource(table.name, table.split, [path])
    kept = {shard.image_id(i) for i in range(len(shard))}
    report.reused += 1
    report.images += len(shard)
    report.pairs += int(shard.caption_counts.sum())
    for i in images:
        image_id = table.image_id(i)
        if image_id not in kept:
            unknown = Skipped(image_id, str(table.path(i)), "unknown", "skipped by an earlier run")
            report.skipped.append(earlier.get(image_id, unknown))


def _write_shard(
    report: Report, plan: ShardPlan, k: int, table: CaptionTable, image_reader: ImageReader, metadata: dict, bar: tqdm
) -> None:
    """Write shard k under its partial name and add it to the report; nothing is left where that fails."""
    texts = pa.list_(pa.string())
    fields = {"image": pa.binary(), "caption": texts, "image_id": pa.string(), "split": pa.string()}
    if table.has_long_captions:
        fields["long_caption"] = texts
    schema = pa.schema(fields, metadata={METADATA: json.dumps(metadata).encode()})
    partial, images = plan.partial(k), plan.images(k)
    try:
        with _room_for(partial), open(partial, "wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                rows, held = [], 0
                results = image_reader.map((str(table.path(i)) for i in images), table.roots)
                for i, (data, kind, reason) in zip(images, results, strict=True):
                    bar.update()
                    image_id, captions = table.image_id(i), table.captions(i)
                    if data is None:
                        report.skipped.append(Skipped(image_id, str(table.path(i)), kind, reason))
                        continue
                    row = {"image": data, "caption": captions, "image_id": image_id, "split": table.split}
                    rows.append({**row, "long_caption": table.long_captions(i)})
                    held += len(data)
                    report.images += 1
                    report.pairs += len(captions)
                    if len(rows) == BATCH_ROWS or held >= BATCH_BYTES:
                        _write_batch(writer, schema, rows)
                        rows, held = [], 0
                if rows:
                    _write_batch(writer, schema, rows)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_batch(writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema, rows: list[dict]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    writer.write_batch(batch, custom_metadata={CHECKSUM: f"{rows_checksum(rows):08x}"})


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); finished shards are kept: make room and give the "
            "same command again"
        ) from error
