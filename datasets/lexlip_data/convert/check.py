"""Checks that converted files are complete and intact, after many machines made them or somebody copied them.

Reads every byte once, by ordinary reads: what the disk or the network cannot give raises an error here, where a
memory map would end the process.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import captions_per_row
from lexlip_data.sources.files import is_hidden
from lexlip_data.sources.ipc import CHECKSUM, check_batch, open_arrow, read_metadata, rows_checksum
from lexlip_data.sources.registry import SPLITS, arrow_prefix
from lexlip_data.sources.skipped import ROW_KINDS, USUAL_RULES, Rules, read_lists


@dataclass
class CheckedSplit:
    """The files of one split: what they hold, and what is wrong with them."""

    prefix: str
    files: int = 0
    images: int = 0
    pairs: int = 0
    skipped: Counter = field(default_factory=Counter)  # by kind
    problems: list[str] = field(default_factory=list)


def check_folder(folder: str | Path, name: str | None = None, rules: Rules = USUAL_RULES) -> Iterator[CheckedSplit]:
    """Check all splits in a folder of Arrow files, or those of one data set.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    groups: dict[str, dict[Path, dict]] = {}
    for path in sorted(path for path in folder.glob("*.arrow") if not is_hidden(path.name)):
        metadata = read_metadata(path)  # {} if it cannot be read: reading the file to its end tells why
        if metadata:
            prefix = arrow_prefix(metadata["name"], metadata["split"])
            wanted = name in (None, metadata["name"])
        else:
            prefix = re.sub(r"_\d+$", "", path.stem)  # part_0.arrow belongs to part
            wanted = name is None or prefix.startswith(f"{name}_") or prefix in [arrow_prefix(name, s) for s in SPLITS]
        if wanted:
            groups.setdefault(prefix, {})[path] = metadata
    if not groups:
        if folder.is_file():
            raise DataError(f"{folder} is a file, not a folder")
        raise DataError(f"{folder}: no Arrow files" + (f" of data set {name}" if name else ""))
    for prefix, files in groups.items():
        yield _check_split(folder, prefix, files, rules)


def _check_split(folder: Path, prefix: str, files: dict[Path, dict], rules: Rules) -> CheckedSplit:
    split = CheckedSplit(prefix, len(files))
    split.problems += _missing(folder, prefix, files)
    fingerprints = {path: metadata.get("fingerprint") for path, metadata in files.items()}
    if len(set(fingerprints.values()) - {None}) > 1:
        usual = Counter(fingerprints.values()).most_common(1)[0][0]
        odd = ", ".join(path.name for path, fingerprint in fingerprints.items() if fingerprint != usual)
        split.problems.append(one_line(f"{prefix}: made from other data or options than the rest: {odd}"))
    for path in files:
        try:
            _read(path, split)
        except (DataError, OSError) as error:
            split.problems.append(one_line(error))
    listed = [metadata["listed"] for metadata in files.values() if metadata.get("listed") is not None]
    if not split.problems and len(listed) == len(files):
        split.problems += _check_lists(folder, split, sum(listed), rules)
    return split


def _missing(folder: Path, prefix: str, files: dict[Path, dict]) -> Iterator[str]:
    single = folder / f"{prefix}.arrow"
    if single in files and len(files) > 1:
        yield f"{prefix}: both {single.name} and numbered shards are there; remove those that are out of date"
        return
    numbers, total = set(), 0
    for path, metadata in files.items():
        match = re.fullmatch(re.escape(prefix) + r"_(\d+)\.arrow", path.name)
        number = int(match.group(1)) if match else 0 if path == single else None
        shard, shards = metadata.get("shard", number), metadata.get("shards", 1)
        if number != shard or (path == single and shards != 1):
            yield f"{path}: holds shard {shard} of {shards} of {prefix}; was it renamed?"
        numbers.add(number)
        total = max(total, shards if metadata else (number or 0) + 1)
    for number in sorted(set(range(total)) - numbers):
        path = folder / f"{prefix}_{number}.arrow"
        unfinished = path.with_name(f".{path.name}.partial")
        yield f"{path}: missing" + (" (begun: killed, refused, or still at work)" if unfinished.exists() else "")


def _read(path: Path, split: CheckedSplit) -> None:
    """Count a file's images and captions. Raises DataError if anything in it is not as it was written."""
    file = open_arrow(path, mapped=False)
    for number in range(file.num_record_batches):
        try:
            batch, metadata = file.get_batch_with_custom_metadata(number)
            check_batch(batch, path, number)
            batch.validate(full=True)
            stored = (metadata or {}).get(CHECKSUM.encode())
            rows = (batch.slice(row, 1).to_pylist()[0] for row in range(batch.num_rows))
            if stored is not None and stored != f"{rows_checksum(rows):08x}".encode():
                raise DataError(f"{path}: record batch {number} is not as it was written; copy or convert it again")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: record batch {number} cannot be read ({one_line(error)})") from error
        split.images += batch.num_rows
        split.pairs += int(captions_per_row(batch.column("caption")).sum())


def _check_lists(folder: Path, split: CheckedSplit, listed: int, rules: Rules) -> Iterator[str]:
    """Whether everything that the files lack is listed, and is not too much."""
    try:
        split.skipped.update(item.kind for item in read_lists(folder, split.prefix))
    except DataError as error:
        yield one_line(error)
        return
    lacking = max(0, listed - split.images)
    known = sum(count for kind, count in split.skipped.items() if kind not in ROW_KINDS)
    if known != lacking:
        yield (
            f"{split.prefix}: {lacking:,} images were left out, but {known:,} are listed: a "
            f"{split.prefix}*_skipped.tsv is missing or out of date"
        )
    if lacking > (allowed := rules.allowed(listed)):
        yield (
            f"{split.prefix}: {lacking:,} of {listed:,} images were left out, more than the {allowed:,} that "
            f"--max-bad-share {rules.max_bad_share:g} allows"
        )
