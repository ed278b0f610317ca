"""Captioned images -> Arrow files that ViLT, METER and `lexlip_data.sources.arrow` read.

Every image is read and fully decoded once, in worker processes; the file's own bytes are stored. Memory holds the
images in flight and one record batch. A shard appears under its name only when it is complete and not
too much of it is bad, so a conversion that was cut off or refused goes on where it stopped.
"""

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
from lexlip_data.convert.shard_plan import ShardPlan
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.files import sync_folder
from lexlip_data.sources.ipc import CHECKSUM, METADATA, rows_checksum
from lexlip_data.sources.skipped import ROW_KINDS, Skipped, list_paths, read_lists, write_list

BATCH_ROWS, BATCH_BYTES = 256, 64 << 20  # a record batch ends at either: a random read then maps little


@dataclass
class Report:
    """What `write_split` did. `left_out` are rows of the table, `skipped` images."""

    prefix: str
    shards: list[Path]
    listed_in: Path
    left_out: list[Skipped]
    skipped: list[Skipped] = field(default_factory=list)
    reused: int = 0  # shards that were finished before
    images: int = 0
    pairs: int = 0


def write_split(
    plan: ShardPlan, image_reader: ImageReader, only: int | None = None, overwrite: bool = False, progress: bool = True
) -> Report:
    """Write the files of one split.

    Args:
        plan: of its table, whose rules say how many bad images are too many. Its folder is made if absent.
        image_reader: inside its `with`.
        only: write just this shard; other machines write the others.
        overwrite: remove the plan's files first. Else finished shards are kept, and files that other data or options
            made are refused.
    Returns:
        the report; what was left out is also listed in `{prefix}_skipped.tsv`, or `{prefix}_{only}_skipped.tsv`.
    Raises:
        DataError: files of other data or options are there, not one image could be read, too many could not, or
            the disk is full.
    """
    out, prefix, table = plan.out, plan.prefix, plan.table
    out.mkdir(parents=True, exist_ok=True)
    mine = range(len(plan.paths)) if only is None else [only]
    done = plan.done(mine, overwrite)
    rows = table.left_out if only in (None, 0) else []  # the table's own rows belong to no shard
    listed_in = out / (f"{prefix}_skipped.tsv" if only is None else f"{prefix}_{only}_skipped.tsv")
    report = Report(prefix, [plan.paths[k] for k in mine], listed_in, rows)
    lists = read_lists(out, prefix) if done else ()
    earlier = {item.image_id: item for item in lists if item.kind not in ROW_KINDS}
    so_far: list[Path] = []
    total = sum(len(plan.images(k)) for k in mine)
    with tqdm(total=total, desc=prefix, unit="image", disable=None if progress else True) as bar:
        for k in mine:
            if k in done:
                _count_done(report, plan, k, done[k], earlier)
                bar.update(len(plan.images(k)))
            else:
                _write_shard(report, plan, k, image_reader, bar)
            for i in plan.images(k) if earlier else ():
                earlier.pop(table.image_id(i), None)
            # Before the shard gets its name: once it is there, the reasons for what it lacks are known too.
            with _room_for(report.listed_in):
                write_list(report.listed_in, chain(report.left_out, report.skipped, earlier.values()))
            so_far += [plan.paths[k], plan.partial(k)]
            _refuse_bad(report, plan, total, so_far)
            if done.get(k) != plan.paths[k]:
                os.replace(plan.partial(k), plan.paths[k])
                sync_folder(out)
    if only is None:
        for path in set(list_paths(out, prefix)) - {report.listed_in}:
            path.unlink()  # of shards that were converted alone before; the list of the whole split holds them too
    return report


def _refuse_bad(report: Report, plan: ShardPlan, total: int, so_far: list[Path]) -> None:
    """Raise a DataError where too many of `total` images are bad.

    What is written is kept, but not under its name; unless there is not one image in it.
    """
    bad, rules = len(report.skipped), plan.table.rules
    allowed = rules.allowed(total)
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
        f"--max-bad-share {rules.max_bad_share:g} allows, e.g. {example}; so far {report.listed_in} lists them. "
        "Repair them and convert with --overwrite, or give a larger --max-bad-share: what is done is kept"
    )


def _count_done(report: Report, plan: ShardPlan, k: int, path: Path, earlier: dict[str, Skipped]) -> None:
    table = plan.table
    shard = ArrowSource(table.name, table.split, [path])
    kept = {shard.image_id(i) for i in range(len(shard))}
    report.reused += 1
    report.images += len(shard)
    report.pairs += int(shard.caption_counts.sum())
    for i in plan.images(k):
        image_id = table.image_id(i)
        if image_id not in kept:
            unknown = Skipped(image_id, str(table.path(i)), "unknown", "skipped by an earlier run")
            report.skipped.append(earlier.get(image_id, unknown))


def _write_shard(report: Report, plan: ShardPlan, k: int, image_reader: ImageReader, bar: tqdm) -> None:
    """Write shard k under its partial name and add it to the report; nothing is left where that fails."""
    table, partial, images = plan.table, plan.partial(k), plan.images(k)
    texts = pa.list_(pa.string())
    fields = {"image": pa.binary(), "caption": texts, "image_id": pa.string(), "split": pa.string()}
    if table.has_long_captions:
        fields["long_caption"] = texts
    if table.has_coco_ids:
        fields |= {"caption_id": texts, "cocoid": pa.string()}
    schema = pa.schema(fields, metadata={METADATA: json.dumps(plan.metadata(k)).encode()})
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
                    cocoid, caption_ids = table.coco_ids(i)
                    extra = {"caption_id": caption_ids, "cocoid": cocoid} if table.has_coco_ids else {}
                    rows.append({**row, "long_caption": table.long_captions(i), **extra})
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
