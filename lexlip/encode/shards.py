"""The folder that vectors are written into: which shards there are, what they hold, and which are finished.

    encoding.json                what is encoded, with which model and arguments; another run is refused
    shard-00000.arrow            documents 0 to shard_documents - 1, and so on
    shard-00000_skipped.tsv      what a shard had to leave out, if anything
    skipped_samples.tsv          all of it, once the last shard is there

A shard appears under its name when it is complete. Each says in its schema how many there are, so that an index is not
built from a part of them. Processes agree through the files alone; the lock is held for moments.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
from filelock import FileLock

from lexlip.encode.vectors import Window
from lexlip.errors import EncodingError
from lexlip.index.origin import Origin, origin_metadata
from lexlip.index.shards import record_batch, run_metadata
from lexlip.sparse import SparseRows
from lexlip.utils.files import give_usual_rights, write_json
from lexlip_data.sources.files import sync_folder
from lexlip_data.sources.skipped import Rules, Skipped, read_lists, write_list

FACTS = "encoding.json"
SKIPPED = "skipped_samples.tsv"
_LOCK = ".encode.lock"
_DRAFT = ".shard-*.tmp"


@dataclass(frozen=True)
class ShardPlan:
    """How documents are divided into shards: the same way for any number of processes.

    Attributes:
        documents: of the corpus.
        shard_documents: of a shard; of the last one what is left.
        window: documents that are encoded together and become a record batch.
    """

    documents: int
    shard_documents: int
    window: int

    @property
    def shards(self) -> int:
        return -(-self.documents // self.shard_documents)

    def size(self, shard: int) -> int:
        """Documents of a shard."""
        return min(self.shard_documents, self.documents - shard * self.shard_documents)

    def windows(self, shard: int) -> list[Window]:
        """Windows of a shard."""
        start = shard * self.shard_documents
        stop = start + self.size(shard)
        return [(first, min(first + self.window, stop)) for first in range(start, stop, self.window)]


class ShardFolder:
    """The output folder of one encoding.

    Args:
        path: a new folder, or one that the same facts began.
        plan: of the corpus.
        facts: what decides the vectors; JSON values by name.
        rules: how many documents may be left out.
        origin: for the schema of the shards.

    Raises:
        EncodingError: the folder holds something else, or what other facts gave.
    """

    def __init__(self, path: Path, plan: ShardPlan, facts: dict, rules: Rules, origin: Origin):
        self._origin = origin
        self.path, self.plan, self.rules = path, plan, rules
        self._run = facts["run"]
        self._allowed = rules.allowed(plan.documents)
        if path.exists() and not path.is_dir():
            raise EncodingError(f"{path} is no folder")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / _LOCK)
        with self._lock:
            self._claim(facts)

    def _claim(self, facts: dict) -> None:
        file = self.path / FACTS
        if not file.exists():
            if any(self.path.glob("*.arrow")):
                raise EncodingError(f"{self.path} holds Arrow files of something else; name a new folder with --out")
            write_json(facts, file)
            return
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            names = {**facts, "id_prefix": ""}
            changed = [name for name in names if name != "run" and there.get(name) != facts.get(name)]
        except (OSError, ValueError, AttributeError) as error:
            raise EncodingError(f"{file} cannot be read ({error}); name a new folder with --out") from error
        if changed:
            name = changed[0]
            raise EncodingError(
                f"{self.path} was begun with {name.replace('_', ' ')} {there.get(name)}, not {facts.get(name)}; run it "
                "as it was begun, or name a new folder with --out"
            )

    def name(self, shard: int) -> str:
        return f"shard-{shard:0{max(5, len(str(self.plan.shards - 1)))}d}"

    def shard(self, shard: int) -> Path:
        """A shard's file; there once the shard is finished."""
        return self.path / f"{self.name(shard)}.arrow"

    def write(self, shard: int, windows: Iterator[tuple[SparseRows, list[Skipped]]], ids: str, wide: bool) -> None:
        """Write a shard.

        Args:
            windows: rows and what was left out, of each window of the shard.
            ids: "int" or "string".
            wide: terms of 32 bits instead of 16.

        Raises:
            EncodingError: too much was left out, counted over all shards.
        """
        skipped: list[Skipped] = []
        schema = pa.schema(
            {
                "id": pa.int64() if ids == "int" else pa.string(),
                "terms": pa.list_(pa.uint32() if wide else pa.uint16()),
                "weights": pa.list_(pa.float16()),
            },
            metadata={**run_metadata(self._run, shard, self.plan.shards), **origin_metadata(self._origin)},
        )
        handle, draft = tempfile.mkstemp(prefix=f".{self.name(shard)}-", suffix=".tmp", dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for rows, left_out in windows:
                        if len(rows):
                            writer.write_batch(record_batch(rows, schema))
                        skipped += left_out
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                self._publish(shard, Path(draft), skipped)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def _publish(self, shard: int, draft: Path, skipped: list[Skipped]) -> None:
        # The list first: whoever publishes next counts it.
        write_list(self.path / f"{self.name(shard)}_skipped.tsv", skipped)
        everything = self._skipped()
        if len(everything) > self._allowed:
            raise EncodingError(
                f"{len(everything):,} of {self.plan.documents:,} documents cannot be used, more than the "
                f"{self._allowed:,} that max_bad_share {self.rules.max_bad_share:g} allows, e.g. {everything[0]}; "
                f"{self.path}/*_skipped.tsv list them: repair or remove them, then run it again"
            )
        give_usual_rights(draft)
        draft.replace(self.shard(shard))
        sync_folder(self.path)

    def _skipped(self) -> list[Skipped]:
        lists = sorted(self.path.glob("shard-*_skipped.tsv"))
        return [item for file in lists for item in read_lists(self.path, file.name.removesuffix("_skipped.tsv"))]

    def finish(self, left_out: list[Skipped]) -> int | None:
        """If all shards are there, list all that was left out and remove drafts of processes that were killed.

        Args:
            left_out: before anything was encoded.

        Returns:
            How many documents were left out while encoding; None if shards are missing.
        """
        with self._lock:
            if not all(self.shard(number).exists() for number in range(self.plan.shards)):
                return None
            skipped = self._skipped()
            write_list(self.path / SKIPPED, [*left_out, *skipped])
            for draft in self.path.glob(_DRAFT):
                draft.unlink(missing_ok=True)
            return len(skipped)
