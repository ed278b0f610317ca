"""Which images of a table go into which file: a function of the table and the options alone.

So machines that convert one shard each need not communicate, and a conversion that was cut off knows its finished
shards.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from lexlip_data.errors import DataError
from lexlip_data.sources.files import is_file
from lexlip_data.sources.ipc import MAX_SHARDS, read_metadata
from lexlip_data.sources.table import CaptionTable

FORMAT = 2  # raised when the same table gives other files


class ShardPlan:
    """The files of one split, `paths` in order; the fingerprint is of everything that decides their content."""

    def __init__(
        self, table: CaptionTable, out: str | Path, prefix: str, shard_images: int | None = None,
        shards: int | None = None, numbered: bool = False, options: dict | None = None,
    ):  # fmt: skip
        """
        Args:
            shard_images: images listed per shard.
            shards: how many shards, as equal as can be; some may be empty. Neither: all in one.
            numbered: number a single shard too.
            options: whatever else decides the files' content.
        Raises:
            DataError: the table is empty, a number is below 1, or there are two.
        """
        if not (total := len(table)):
            raise DataError(
                f"{table.origin}: no row with a caption and a file for data set {table.name}, {table.split}"
            )
        if shard_images is not None and shards is not None:
            raise DataError("shard_images and shards: give one of them")
        for key, value in (("shard_images", shard_images), ("shards", shards)):
            if value is not None and value < 1:
                raise DataError(f"{key} {value}: must be at least 1")
        if shards is not None and shards > MAX_SHARDS:
            raise DataError(f"shards {shards}: at most {MAX_SHARDS:,}")
        if shards is None:
            size: int | str = shard_images or total
            self.bounds = [*range(0, total, shard_images or total), total]
        else:
            size = f"{shards} shards"
            self.bounds = [k * total // shards for k in range(shards + 1)]
        self.table, self.out, self.prefix, self.options = table, Path(out), prefix, options or {}
        n = len(self.bounds) - 1  # shard k holds the images bounds[k] .. bounds[k + 1] - 1 of the table
        names = [f"{prefix}.arrow"] if n == 1 and not numbered else [f"{prefix}_{k}.arrow" for k in range(n)]
        self.paths = [self.out / name for name in names]
        parts = [FORMAT, table.fingerprint(), table.name, table.split, _probe(table), size, self.options]
        self.fingerprint = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def images(self, k: int) -> range:
        return range(self.bounds[k], self.bounds[k + 1])

    def metadata(self, k: int) -> dict:
        """What the file of shard k says of itself."""
        return {
            "format": FORMAT, "fingerprint": self.fingerprint, "name": self.table.name, "split": self.table.split,
            "shard": k, "shards": len(self.paths), "listed": len(self.images(k)), **self.options,
        }  # fmt: skip

    def partial(self, k: int) -> Path:
        """The file while it is written; always the same, so that what killed processes leave does not pile up."""
        return self.paths[k].with_name(f".{self.paths[k].name}.partial")

    def done(self, mine: Sequence[int], overwrite: bool) -> dict[int, Path]:
        """Those of the shards `mine` that were written to their end before, under their own names or (written but not
        accepted) their partial ones. With overwrite all are removed.

        Raises:
            DataError: a file of other data or options is in the way. With overwrite only one that no shard replaces.
        """
        pattern = re.compile(re.escape(self.prefix) + r"(_\d+)?\.arrow")
        there = sorted(path for path in self.out.iterdir() if pattern.fullmatch(path.name))
        todo = f"give --overwrite to replace every {self.prefix}*.arrow in {self.out}"
        if overwrite:
            alone = len(mine) < len(self.paths)  # other machines replace their own shards
            own = [self.paths[k] for k in mine]
            for path in (*(own if alone else there), *map(self.partial, mine)):
                path.unlink(missing_ok=True)
            there = [path for path in there if path not in self.paths] if alone else []
            todo = "remove it"
        for path in there:
            if path not in self.paths or not self._is_shard(path, self.paths.index(path)):
                raise DataError(
                    f"{path} was made from other data or options, or by another program: {todo}, or give another --out"
                )
        finished = {k: self.paths[k] for k in mine if self.paths[k] in there}
        return {k: self.partial(k) for k in mine if self._is_shard(self.partial(k), k)} | finished

    def _is_shard(self, path: Path, k: int) -> bool:
        metadata = read_metadata(path)
        return (metadata.get("fingerprint"), metadata.get("shard")) == (self.fingerprint, k)


def _probe(table: CaptionTable) -> list[int]:
    """Sizes of a few files: other images under the same names are noticed, but the folder may move."""
    files = [table.path(i) for i in sorted({len(table) * k // 16 for k in range(16)})]
    return [file.stat().st_size if is_file(file) else -1 for file in files]
