"""Whether converted files are all there and whole, after many machines made them or they were copied.

Reads every byte once, by ordinary reads: what the disk or the network cannot give is an error here, where a memory
map would end the process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import captions_per_row
from lexlip_data.sources.ipc import CHECKSUM, check_batch, open_arrow, own_metadata, row_checksum
from lexlip_data.sources.registry import SPLITS, arrow_prefix
from lexlip_data.sources.skipped import ROW_KINDS, USUAL_RULES, Rules, read_lists


@dataclass
class Checked:
    """The files of one split: what they hold, and what is wrong with them."""

    prefix: str
    files: int = 0
    pictures: int = 0
    pairs: int = 0
    skipped: Counter = field(default_factory=Counter)  # by kind
    problems: list[str] = field(default_factory=list)


def check_folder(folder: str | Path, name: str | None = None, rules: Rules = USUAL_RULES) -> Iterator[Checked]:
    """Check all splits in a folder of Arrow files, or those of one data set.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    groups: dict[str, dict[Path, dict]] = {}
    for path in sorted(folder.glob("*.arrow")):
        metadata = _metadata(path)
        # Without its own word the number in its name decides: part_0.arrow belongs to part.
        prefix = arrow_prefix(metadata["name"], metadata["split"]) if metadata else re.sub(r"_\d+$", "", path.stem)
        if name is None or (metadata["name"] == name if metadata else _may_be(prefix, name)):
            groups.setdefault(prefix, {})[path] = metadata
    if not groups:
        raise DataError(f"{folder}: no Arrow files" + (f" of data set {name}" if name else ""))
    for prefix, files in groups.items():
        yield _check_split(folder, prefix, files, rules)


def _may_be(prefix: str, name: str) -> bool:
    return prefix.startswith(f"{name}_") or prefix in {arrow_prefix(name, split) for split in SPLITS}


def _metadata(path: Path) -> dict:
    try:
        return own_metadata(open_arrow(path, mapped=False).schema)
    except DataError:
        return {}  # reading it to the end tells why


def _check_split(folder: Path, prefix: str, files: dict[Path, dict], rules: Rules) -> Checked:
    found = Checked(prefix, len(files))
    found.problems += _missing(folder, prefix, files)
    if len({metadata.get("fingerprint") for metadata in files.values() if metadata}) > 1:
        counts = Counter(str(metadata.get("fingerprint")) for metadata in files.values())
        usual = counts.most_common(1)[0][0]
        odd = [path.name for path, metadata in files.items() if str(metadata.get("fingerprint")) != usual]
        found.problems.append(one_line(f"{prefix}: made from other data or options than the rest: {', '.join(odd)}"))
    for path in files:
        try:
            pictures, pairs = _read(path)
        except (DataError, OSError) as error:
            found.problems.append(one_line(error))
            continue
        found.pictures += pictures
        found.pairs += pairs
    listed = [metadata.get("listed") for metadata in files.values()]
    if not found.problems and None not in listed:
        _check_lists(folder, found, sum(listed), rules)
    return found


def _missing(folder: Path, prefix: str, files: dict[Path, dict]) -> Iterator[str]:
    single = folder / f"{prefix}.arrow"
    if single in files and len(files) > 1:
        yield f"{prefix}: both {single.name} and numbered shards are there; remove those that are out of date"
        return
    numbers, totals = set(), []
    for path, metadata in files.items():
        match = re.fullmatch(re.escape(prefix) + r"_(\d+)\.arrow", path.name)
        number = int(match.group(1)) if match else 0 if path == single else None
        shard, shards = metadata.get("shard", number), metadata.get("shards", 1)
        if number != shard or (path == single and shards != 1):
            yield f"{path}: holds shard {shard} of {shards} of {prefix}; was it renamed?"
        numbers.add(number)
        totals.append(shards if metadata else (number or 0) + 1)
    for number in sorted(set(range(max(totals))) - numbers):
        path = folder / f"{prefix}_{number}.arrow"
        unfinished = path.with_name(f".{path.name}.partial")
        yield f"{path}: missing" + (" (begun: killed, refused, or still at work)" if unfinished.exists() else "")


def _read(path: Path) -> tuple[int, int]:
    """Pictures and captions of a file. Raises DataError if anything in it is not as it was written."""
    reader = open_arrow(path, mapped=False)
    pictures = pairs = 0
    for number in range(reader.num_record_batches):
        try:
            batch, metadata = reader.get_batch_with_custom_metadata(number)
            check_batch(batch, path, number)
            batch.validate(full=True)
            stored = (metadata or {}).get(CHECKSUM.encode())
            if stored is not None and stored != f"{_checksum(batch):08x}".encode():
                raise DataError(f"{path}: record batch {number} is not as it was written; copy or convert it again")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: record batch {number} cannot be read ({one_line(error)})") from error
        pictures += batch.num_rows
        pairs += int(captions_per_row(batch.column("caption")).sum())
    return pictures, pairs


def _checksum(batch: pa.RecordBatch) -> int:
    crc = 0
    for row in range(batch.num_rows):
        cells = {name: batch.column(name)[row] for name in batch.schema.names}
        image = cells.pop("image").as_buffer()
        text = {name: cell.as_py() for name, cell in cells.items()}
        crc = row_checksum(
            crc, image or b"", text["caption"], text["image_id"], text["split"], text.get("long_caption") or []
        )
    return crc


def _check_lists(folder: Path, found: Checked, listed: int, rules: Rules) -> None:
    """Whether all that the files lack is listed, and is not too much."""
    try:
        found.skipped.update(item.kind for item in read_lists(folder, found.prefix))
    except DataError as error:
        found.problems.append(one_line(error))
        return
    lacking = max(0, listed - found.pictures)
    known = sum(count for kind, count in found.skipped.items() if kind not in ROW_KINDS)
    if known != lacking:
        found.problems.append(
            f"{found.prefix}: {lacking:,} pictures were left out, but {known:,} are listed: a "
            f"{found.prefix}*_skipped.tsv is missing or out of date"
        )
    if lacking > rules.allowed(listed):
        found.problems.append(
            f"{found.prefix}: {lacking:,} of {listed:,} pictures were left out, more than the "
            f"{rules.allowed(listed):,} that --max-bad-share {rules.max_bad_share:g} allows"
        )
