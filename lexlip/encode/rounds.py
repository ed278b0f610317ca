"""What is left to encode: of a new folder all, of one that was begun the rest, and of a corpus that grew what is new.

A corpus that grew is encoded in rounds. Each has its own facts, shards and run, so that shards that are there stay as
they are, byte for byte, and an index takes those of all rounds:

    encoding.json, shard-00000.arrow, ...               the first round
    encoding-1.json, shard-added1-00000.arrow, ...      what was new the second time, and so on
    encoding-names.gz, encoding-1-names.gz              a round's images of a folder, until its last shard is there
    encoding-rows.npy, encoding-1-rows.npy              checksums of a round's rows or lines, to see what was changed

A folder of images grows anywhere, because its documents have lasting names: costs reading the ids of all shards once
they differ from the folder; and, of documents that are there, a `stat` each to see which were changed since. A table,
Arrow files and lines grow at their end: costs reading all texts, or the lengths of all images, and 8 bytes for each.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import cast

import numpy as np
from filelock import FileLock

from lexlip.encode.corpus import Images, Ordered, Part, Texts
from lexlip.encode.files import FolderImages, LineTexts
from lexlip.encode.shards import LOCK, ShardFolder, ShardPlan, refuse_other
from lexlip.errors import EncodingError
from lexlip.index.origin import Origin
from lexlip.utils.files import give_usual_rights, write_json, write_whole
from lexlip_data.errors import one_line
from lexlip_data.sources.skipped import Rules, Skipped

_MOST_TIMES, _MOST_SMALL = 64, 64 << 20  # a list of names may be so much longer without compression
_FACTS, _NAMES, _ROWS = ".json", "-names.gz", "-rows.npy"  # endings of a round's files beside its shards
_OF_CORPUS = ("documents", "corpus")  # facts that may differ where a corpus grew


@dataclass
class Round:
    """Documents and the shards that they go into."""

    corpus: Images | Texts
    shards: ShardFolder


def open_rounds(
    out: Path, corpus: Images | Texts, settings: dict, make_plan: Callable[[int], ShardPlan], rules: Rules,
    origin: Origin | None = None,
) -> tuple[list[Round], list[str]]:  # fmt: skip
    """Claim a folder for a corpus, or find what it holds of it already.

    Args:
        settings: what decides the vectors besides the corpus; JSON values by name.
        make_plan: of how many documents.
        rules: how many documents may be left out.
        origin: for the schema of the shards.

    Returns:
        The first round and those that were added, and a line for each kind of thing that is not as somebody may expect.

    Raises:
        EncodingError: the folder holds something else, or what other settings gave.
    """
    if out.exists() and not out.is_dir():
        raise EncodingError(f"{out} is no folder")
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    with lock:
        return _Opener(out, corpus, settings, make_plan, rules, lock, origin).open()


@dataclass
class _Opener:
    out: Path
    corpus: Images | Texts
    settings: dict
    make_plan: Callable[[int], ShardPlan]
    rules: Rules
    lock: FileLock
    origin: Origin | None

    def open(self) -> tuple[list[Round], list[str]]:
        there = self._there()
        if not there and any(self.out.glob("*.arrow")):
            raise EncodingError(f"{self.out} holds Arrow files of something else; name a new folder with --out")
        facts = self._facts(self.corpus)
        for of_round in there:
            self._require_same(of_round, self.settings)
        if len(there) == 1 and all(there[0].get(name) == facts[name] for name in _OF_CORPUS):
            first = self._round(0, self.corpus, there[0])
            # Of lines the fingerprint says that none was changed.
            of_rows = [] if isinstance(self.corpus, LineTexts) else self._changed_rows(there)
            return [first], self._changed([first]) + of_rows
        if there and not self._begun(len(there) - 1, there[-1]):
            self._forget(len(there) - 1)
            there = there[:-1]
        if not there:
            return [self._claim(0, self.corpus)], []
        found = self._grown(there, self.corpus) if isinstance(self.corpus, FolderImages) else self._longer(there)
        if found is None:
            self._require_same(there[0], facts)
            raise EncodingError(f"{self.out} holds another corpus; name a new folder with --out")
        for each in found[0]:
            each.shards.allow(self.rules.allowed(len(self.corpus)), len(self.corpus))
        return found

    def _longer(self, there: list[dict]) -> tuple[list[Round], list[str]] | None:
        """The rounds of rows that are there and a new one of those after them; None where this is another corpus."""
        ends = [0, *accumulate(facts["documents"] for facts in there)]
        before = self._rows(there)
        if before is None or ends[-1] > len(self.corpus) or (len(there) == 1 and ends[-1] == len(self.corpus)):
            return None
        same = self._marks[: len(before)] == before
        if not same[:, 0].all() or 2 * np.count_nonzero(~same[:, 1]) >= len(same):
            return None
        rounds = [
            self._round(number, self._part(ends[number], ends[number + 1]), facts) for number, facts in enumerate(there)
        ]
        if ends[-1] < len(self.corpus):
            rounds.append(self._claim(len(there), self._part(ends[-1], len(self.corpus))))
        return rounds, self._changed_rows(there)

    def _part(self, start: int, stop: int) -> Images | Texts:
        return cast(Images | Texts, Part(self.corpus, start, stop, self._marks))

    @cached_property
    def _marks(self) -> np.ndarray:
        return cast(Ordered, self.corpus).marks()

    def _file(self, number: int, ending: str) -> Path:
        """A file of a round beside its shards."""
        return self.out / (f"encoding-{number}{ending}" if number else f"encoding{ending}")

    def _rows(self, there: list[dict]) -> np.ndarray | None:
        """The marks of the rows of all rounds; None where they are not kept, as in earlier versions."""
        files = [self._file(number, _ROWS) for number in range(len(there))]
        if not hasattr(self.corpus, "marks") or not all(file.exists() for file in files):
            return None
        found = []
        for file, facts in zip(files, there, strict=True):
            try:
                marks = np.load(file, allow_pickle=False)
                if marks.dtype != np.uint32 or marks.shape != (facts["documents"], 2):
                    raise ValueError(f"{marks.dtype} of shape {marks.shape}")
            except (OSError, ValueError, EOFError) as error:
                raise EncodingError(
                    f"{file} cannot be read ({one_line(error)}); name a new folder with --out"
                ) from error
            found.append(marks)
        return np.concatenate(found)

    def _changed_rows(self, there: list[dict]) -> list[str]:
        """A note of the rows that say something else than when they were encoded."""
        before = self._rows(there)
        if before is None:
            return []
        changed = np.flatnonzero((self._marks[: len(before)] != before).any(axis=1))
        if not len(changed):
            return []
        first = int(changed[0])
        if self.corpus.what == "images":
            name: object = cast(Images, self.corpus).name(first)
        else:
            text = next(cast(Texts, self.corpus).read(first, first + 1))
            name = text.image_id if isinstance(text, Skipped) else text[0]
        return [
            f"{self.out}: {len(changed):,} {self.corpus.what} of {self.corpus.origin} were changed after they were "
            f"encoded (e.g. {one_line(name)}); they are not encoded anew: name a new folder with --out"
        ]

    def _grown(self, there: list[dict], corpus: FolderImages) -> tuple[list[Round], list[str]]:
        names = [self._names(number, facts) for number, facts in enumerate(there)]
        before = {name for of_round in names for name in of_round}
        gone = frozenset(before.difference(corpus.names.to_pylist()))
        rounds = [self._round(number, corpus.of(names[number]), facts, gone) for number, facts in enumerate(there)]
        new = [name for name in corpus.names.to_pylist() if name not in before]
        notes = self._changed(rounds)
        ids = (of_round.shards.ids_of(shard) for of_round in rounds for shard in of_round.shards.finished())
        encoded = sorted(gone.intersection(chain.from_iterable(ids)))
        if encoded:
            notes.append(
                f"{self.out}: {len(encoded):,} images that were encoded are gone from {corpus.origin} (e.g. "
                f"{one_line(encoded[0])}); their vectors stay: delete their ids from an index, or name a new folder "
                "with --out"
            )
        if new:
            rounds.append(self._claim(len(there), corpus.of(new), gone))
        return rounds, notes

    def _there(self) -> list[dict]:
        found: list[dict] = []
        while (file := self._file(len(found), _FACTS)).exists():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(content["documents"], int) or not isinstance(content["run"], str):
                    raise ValueError("no number of documents, or no run")
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise EncodingError(
                    f"{file} cannot be read ({one_line(error)}); name a new folder with --out"
                ) from error
            found.append(content)
        return found

    def _require_same(self, there: dict, facts: dict) -> None:
        no_prefix = {"id_prefix": ""}  # which earlier versions do not write
        refuse_other(self.out, {**no_prefix, **there}, {**no_prefix, **facts})

    def _facts(self, corpus: Images | Texts) -> dict:
        facts = {**self.settings, "documents": len(corpus), "corpus": corpus.fingerprint()}
        run = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        return {**facts, "run": run}

    def _round(self, number: int, corpus: Images | Texts, facts: dict, gone: frozenset[str] = frozenset()) -> Round:
        files = self._file(number, _FACTS), self._file(number, _NAMES)
        stem = f"shard-added{number}-" if number else "shard-"
        plan = self.make_plan(facts["documents"])
        shards = ShardFolder(self.out, plan, facts["run"], self.rules, self.lock, stem, files, gone, self.origin)
        return Round(corpus, shards)

    def _claim(self, number: int, corpus: Images | Texts, gone: frozenset[str] = frozenset()) -> Round:
        facts = self._facts(corpus)
        if isinstance(corpus, FolderImages):  # the names first: whoever finds the facts may need them
            content = gzip.compress("\0".join(corpus.names.to_pylist()).encode(), 1)
            write_whole(self._file(number, _NAMES), lambda file: file.write(content))
            give_usual_rights(self._file(number, _NAMES))
        elif hasattr(self.corpus, "marks"):
            marks = self._marks[-len(corpus) :]
            write_whole(self._file(number, _ROWS), lambda file: np.save(file, marks))
        write_json(facts, self._file(number, _FACTS))
        return self._round(number, corpus, facts, gone)

    def _begun(self, number: int, facts: dict) -> bool:
        return bool(self._round(number, self.corpus, facts).shards.finished())

    def _forget(self, number: int) -> None:
        """Remove what a round without a finished shard left."""
        for file in self._round(number, self.corpus, {"documents": 1, "run": ""}).shards.lists():
            file.unlink(missing_ok=True)
        self._file(number, _FACTS).unlink()
        for ending in (_NAMES, _ROWS):
            self._file(number, ending).unlink(missing_ok=True)

    def _names(self, number: int, facts: dict) -> list[str]:
        """Of a round's documents, in their order where one is left to encode."""
        file = self._file(number, _NAMES)
        try:
            if file.exists():
                packed = file.read_bytes()
                stream = zlib.decompressobj(31)  # gzip's
                names = stream.decompress(packed, _MOST_TIMES * len(packed) + _MOST_SMALL).decode().split("\0")
                if not stream.eof:
                    raise ValueError("cut short, or out of proportion")
                if len(names) != facts["documents"]:
                    raise ValueError(f"{len(names):,} names, not {facts['documents']:,}")
                return names
        except (OSError, zlib.error, ValueError) as error:
            raise EncodingError(f"{file} cannot be read ({one_line(error)}); name a new folder with --out") from error
        shards = self._round(number, self.corpus, facts).shards
        if len(shards.finished()) < shards.plan.shards:
            raise EncodingError(
                f"{self.out} was begun with documents {facts['documents']}, not {len(self.corpus)}, and does not say "
                "which; run it as it was begun, or name a new folder with --out"
            )
        return [name for shard in shards.finished() for name in shards.documents_of(shard)]

    def _changed(self, rounds: list[Round]) -> list[str]:
        """A note of the images that were written after their vectors were."""
        if not isinstance(self.corpus, FolderImages):
            return []
        changed = [
            name
            for of_round in rounds
            for shard in of_round.shards.finished()
            for name in self.corpus.written_after(of_round.shards.shard(shard), of_round.shards.documents_of(shard))
        ]
        if not changed:
            return []
        return [
            f"{self.out}: {len(changed):,} images were changed after they were encoded (e.g. {one_line(changed[0])}); "
            "they are not encoded anew: name a new folder with --out"
        ]
