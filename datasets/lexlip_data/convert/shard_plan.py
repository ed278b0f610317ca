"""Which pictures of a table go into which file: a function of the table and the options alone.

So machines that convert one shard each agree without a word, and a run that was cut off knows its finished shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lexlip_data.errors import DataError
from lexlip_data.sources.files import is_file
from lexlip_data.sources.ipc import MAX_SHARDS, own_metadata
from lexlip_data.sources.table import CaptionTable

FORMAT = 2  # raised when the same table gives other files


@dataclass(frozen=True)
class Plan:
    """The files of one split.

    paths: of the shards, in order.
    bounds: shard k holds the pictures bounds[k] .. bounds[k + 1] - 1 of the table.
    fingerprint: of everything that decides the files' content.
    """

    prefix: str
    paths: tuple[Path, ...]
    bounds: tuple[int, ...]
    fingerprint: str

    def rows(self, k: int) -> range:
        return range(self.bounds[k], self.bounds[k + 1])

    def partial(self, k: int) -> Path:
        """The file while it is written; always of the same name, so that what killed runs leave does not pile up."""
        return self.paths[k].with_name(f".{self.paths[k].name}.partial")

    def finished(self, mine: Sequence[int], overwrite: bool) -> set[int]:
        """The shards among `mine` that are there already; with overwrite they are removed.

        Raises:
            DataError: a file of other data or options is in the way. With overwrite only one that no shard replaces.
        """
        folder = self.paths[0].parent
        pattern = re.compile(re.escape(self.prefix) + r"(_\d+)?\.arrow")
        there = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
        if overwrite:
            alone = len(mine) < len(self.paths)  # other machines replace their own shards
            for path in [self.paths[k] for k in mine] if alone else there:
                path.unlink(missing_ok=True)
            for k in mine:
                self.partial(k).unlink(missing_ok=True)
            there = [path for path in there if path not in self.paths] if alone else []
        for path in there:
            if path not in self.paths or not self._is_shard(path, self.paths.index(path)):
                todo = (
                    "remove it" if overwrite else f"give --overwrite to replace every {self.prefix}*.arrow in {folder}"
                )
                raise DataError(
                    f"{path} was made from other data or options, or by another program: {todo}, or give another --out"
                )
        return {k for k in mine if self.paths[k] in there}

    def held_back(self, k: int) -> bool:
        """Whether shard k was written to its end but not accepted."""
        return self._is_shard(self.partial(k), k)

    def _is_shard(self, path: Path, k: int) -> bool:
        if not is_file(path):
            return False
        try:
            with pa.memory_map(str(path), "r") as file:
                metadata = own_metadata(pa.ipc.open_file(file).schema)
        except (pa.ArrowException, OSError, ValueError):
            return False
        return (metadata.get("fingerprint"), metadata.get("shard")) == (self.fingerprint, k)


def make_plan(
    table: CaptionTable,
    out: Path,
    prefix: str,
    shard_images: int | None = None,
    shards: int | None = None,
    numbered: bool = False,
    options: dict | None = None,
) -> Plan:
    """Cut a table into files.

    Args:
        shard_images: pictures listed per shard.
        shards: how many shards, as equal as can be; some may be empty. Neither: all in one.
        numbered: number a single shard too.
        options: whatever else decides the files' content.
    Raises:
        DataError: a number below 1, or both.
    """
    if shard_images is not None and shards is not None:
        raise DataError("shard_images and shards: give one of them")
    for key, value in (("shard_images", shard_images), ("shards", shards)):
        if value is not None and value < 1:
            raise DataError(f"{key} {value}: must be at least 1")
    if shards is not None and shards > MAX_SHARDS:
        raise DataError(f"shards {shards}: at most {MAX_SHARDS:,}")
    total = len(table)
    if shards is None:
        size = shard_images or total
        bounds = [*range(0, total, size), total]
    else:
        size = f"{shards} shards"
        bounds = [k * total // shards for k in range(shards + 1)]
    n = len(bounds) - 1
    names = [f"{prefix}.arrow"] if n == 1 and not numbered else [f"{prefix}_{k}.arrow" for k in range(n)]
    parts = [FORMAT, table.fingerprint(), table.name, table.split, _probe(table), size, options or {}]
    fingerprint = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
    return Plan(prefix, tuple(out / name for name in names), tuple(bounds), fingerprint)


def _probe(table: CaptionTable) -> list[int]:
    """Sizes of a few files: other pictures under the same names are noticed, but the folder may move."""
    files = [table.path(i) for i in sorted({len(table) * k // 16 for k in range(16)})]
    return [file.stat().st_size if is_file(file) else -1 for file in files]
