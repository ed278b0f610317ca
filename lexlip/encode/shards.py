"""The folder that vectors are written into: which shards there are, what they hold, and which are finished.

    encoding.json                what is encoded, with which model and arguments; another run is refused (`rounds.py`)
    shard-00000.arrow            documents 0 to shard_documents - 1, and so on
    shard-00000_skipped.tsv      what a shard had to leave out, if anything
    skipped_samples.tsv          all of it, once the last shard is there

A shard appears under its name when it is complete. Each says in its schema how many there are, so that an index is not
built from a part of them. Processes agree through the files alone; the lock is held for moments.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.ipc
from filelock import FileLock

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.vectors import Window
from lexlip.errors import EncodingError
from lexlip.index.origin import Origin, origin_metadata
from lexlip.index.shards import record_batch, run_metadata
from lexlip.sparse import SparseRows
from lexlip.utils.files import give_usual_rights
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import sync_folder, writing
from lexlip_data.sources.ipc_bounds import require_proportion
from lexlip_data.sources.skipped import Rules, Skipped, read_lists, write_list

FACTS = "encoding.json"
SKIPPED = "skipped_samples.tsv"
LOCK = ".encode.lock"
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

    def name(self, shard: int, stem: str = "shard-") -> str:
        """Of a shard's files, without their endings."""
        return f"{stem}{shard:0{max(5, len(str(self.shards - 1)))}d}"


class ShardFolder:
    """The shards of one round of encoding in the output folder.

    Args:
        path: the folder.
        plan: of the documents.
        run: name of the run, which its shards share.
        rules: how many documents may be left out.
        lock: of the folder.
        stem: of the shards' names.
        files: the facts that claim the folder for this run, and the names that are of no use after its last shard.
        gone: ids of documents that are not there any more, which nobody misses.
        origin: for the schema of the shards; its prefix stands before each id in them.
    """

    def __init__(
        self,
        path: Path,
        plan: ShardPlan,
        run: str,
        rules: Rules,
        lock: FileLock,
        stem: str = "shard-",
        files: tuple[Path, Path] | None = None,
        gone: frozenset[str] = frozenset(),
        origin: Origin | None = None,
    ):
        self._origin = origin
        self.path, self.plan, self.rules = path, plan, rules
        self._run, self._lock, self._stem, self._gone = run, lock, stem, gone
        self._facts_file, self._names_file = files or (path / FACTS, path / "encoding-names.gz")
        self.allow(rules.allowed(plan.documents), plan.documents)

    def allow(self, bad: int, documents: int) -> None:
        """Set how many documents of all rounds may be left out."""
        self._allowed, self._documents = bad, documents

    def name(self, shard: int) -> str:
        return self.plan.name(shard, self._stem)

    def shard(self, shard: int) -> Path:
        """A shard's file; there once the shard is finished."""
        return self.path / f"{self.name(shard)}.arrow"

    def finished(self) -> list[int]:
        """Numbers of the shards that are there."""
        return [shard for shard in range(self.plan.shards) if self.shard(shard).exists()]

    def ids_of(self, shard: int) -> list:
        """Ids of a finished shard's rows, as the corpus has them.

        Raises:
            EncodingError: it cannot be read.
        """
        path = self.shard(shard)
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                require_proportion(source, path)
                batches = map(reader.get_batch, range(reader.num_record_batches))
                ids = [id for batch in batches for id in batch.column("id").to_pylist()]
        except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError, DataError) as error:
            raise EncodingError(f"{path} cannot be read ({error}); remove it to encode it again") from error
        source = self._origin.source if self._origin else None
        prefix = source.id_prefix if source else ""
        return [id.removeprefix(prefix) for id in ids] if prefix else ids

    def documents_of(self, shard: int) -> list:
        """`ids_of` a finished shard, and those that it left out."""
        return [*self.ids_of(shard), *(item.image_id for item in read_lists(self.path, self.name(shard)))]

    def is_gone(self, corpus: Images | Texts, document: int) -> bool:
        """Whether a document of the round is not there any more."""
        return bool(self._gone) and corpus.what == "images" and cast(Images, corpus).name(document) in self._gone

    def lists(self) -> list[Path]:
        """Lists of what this round's shards left out."""
        pattern = re.compile(re.escape(self._stem) + r"\d+_skipped\.tsv")
        return sorted(path for path in self.path.glob("shard-*_skipped.tsv") if pattern.fullmatch(path.name))

    def write(self, shard: int, windows: Iterator[tuple[SparseRows, list[Skipped]]], ids: str, wide: bool) -> None:
        """Write a shard.

        Args:
            windows: rows and what was left out, of each window of the shard.
            ids: "int" or "string".
            wide: terms of 32 bits instead of 16.

        Raises:
            EncodingError: too much was left out, counted over all shards.
        """
        schema = pa.schema(
            {
                "id": pa.int64() if ids == "int" else pa.string(),
                "terms": pa.list_(pa.uint32() if wide else pa.uint16()),
                "weights": pa.list_(pa.float16()),
            }
        )
        batches = ((record_batch(rows, schema) if len(rows) else None, left_out) for rows, left_out in windows)
        self.write_batches(shard, batches, schema)

    def write_batches(
        self, shard: int, batches: Iterable[tuple[pa.RecordBatch | None, list[Skipped]]], schema: pa.Schema
    ) -> None:
        """Write a shard of record batches, each with what was left out of it; see `write`."""
        skipped: list[Skipped] = []
        of_run = run_metadata(self._run, shard, self.plan.shards)
        schema = schema.with_metadata({**of_run, **(origin_metadata(self._origin) if self._origin else {})})
        handle, draft = tempfile.mkstemp(prefix=f".{self.name(shard)}-", suffix=".tmp", dir=self.path)
        try:
            with writing(self.shard(shard)), os.fdopen(handle, "wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for batch, left_out in batches:
                        if batch is not None:
                            writer.write_batch(batch)
                        skipped += left_out
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                self.publish(shard, Path(draft), skipped)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def publish(self, shard: int, draft: Path, skipped: list[Skipped]) -> None:
        if not self._is_claimed():
            raise EncodingError(f"{self.path} was begun anew by another command meanwhile; run this one again")
        # The list first: whoever publishes next counts it.
        write_list(self.path / f"{self.name(shard)}_skipped.tsv", skipped)
        everything = self._skipped()
        if len(everything) > self._allowed:
            raise EncodingError(
                f"{len(everything):,} of {self._documents:,} documents cannot be used, more than the "
                f"{self._allowed:,} that max_bad_share {self.rules.max_bad_share:g} allows, e.g. {everything[0]}; "
                f"{self.path}/*_skipped.tsv list them: repair or remove them, then run it again"
            )
        give_usual_rights(draft)
        draft.replace(self.shard(shard))
        sync_folder(self.path)

    def _is_claimed(self) -> bool:
        try:
            return json.loads(self._facts_file.read_text(encoding="utf-8"))["run"] == self._run
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _skipped(self) -> list[Skipped]:
        """What all rounds left out."""
        lists = sorted(self.path.glob("shard-*_skipped.tsv"))
        items = [item for file in lists for item in read_lists(self.path, file.name.removesuffix("_skipped.tsv"))]
        return [item for item in items if item.image_id not in self._gone]

    def finish(self, left_out: list[Skipped]) -> int | None:
        """If all shards are there, list all that was left out and remove drafts of processes that were killed.

        Args:
            left_out: before anything was encoded.

        Returns:
            How many documents of all rounds were left out while encoding; None if shards are missing.
        """
        with self._lock:
            if not all(self.shard(number).exists() for number in range(self.plan.shards)):
                return None
            skipped = self._skipped()
            write_list(self.path / SKIPPED, [*left_out, *skipped])
            for draft in self.path.glob(_DRAFT):
                draft.unlink(missing_ok=True)
            self._names_file.unlink(missing_ok=True)
            return len(skipped)


def refuse_other(folder: Path, there: dict, facts: dict) -> None:
    """Refuse to go on in a folder that other facts began.

    Args:
        there: facts of the folder.
        facts: of this call; "run" follows from the others.

    Raises:
        EncodingError: naming the first fact that differs, and both values.
    """
    for name in facts:
        if name != "run" and there.get(name) != facts[name]:
            raise EncodingError(
                f"{folder} was begun with {name.replace('_', ' ')} {one_line(there.get(name), 80)}, not {facts[name]}; "
                "run it as it was begun, or name a new folder with --out"
            )
