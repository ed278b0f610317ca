"""What is left to encode: of a new folder all, of one that was begun the rest, and of a corpus that grew what is new.

A corpus that grew is encoded in rounds. Each has its own facts, shards and run, so that shards that are there stay as
they are, byte for byte, and an index takes those of all rounds:

    encoding.json, shard-00000.arrow, ...               the first round
    encoding-1.json, shard-added1-00000.arrow, ...      what was new the second time, and so on
    encoding-names.gz, encoding-1-names.gz              a round's documents, until its last shard is there

Only corpora whose documents have lasting names grow: folders of images. Costs reading the ids of all shards once they
differ from the folder; and, of documents that are there, a `stat` each to see which were changed since.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.files import FolderImages
from lexlip.encode.shards import FACTS, LOCK, ShardFolder, ShardPlan, refuse_other
from lexlip.errors import EncodingError
from lexlip.index.origin import Origin
from lexlip.utils.files import give_usual_rights, write_json, write_whole
from lexlip_data.errors import one_line
from lexlip_data.sources.skipped import Rules

_OF_CORPUS = ("documents", "corpus")  # facts that may differ where a corpus grew


@dataclass
class Round:
    """Documents and the shards that they go into."""

    corpus: Images | Texts
    shards: ShardFolder


@dataclass
class Rounds:
    """All rounds of an output folder.

    Attributes:
        rounds: the first one and those that were added.
        notes: what is not as somebody may expect, a line for each kind of it.
    """

    rounds: list[Round]
    notes: list[str] = field(default_factory=list)


def open_rounds(
    out: Path, corpus: Images | Texts, settings: dict, make_plan: Callable[[int], ShardPlan], rules: Rules,
    origin: Origin | None = None,
) -> Rounds:  # fmt: skip
    """Claim a folder for a corpus, or find what it holds of it already.

    Args:
        settings: what decides the vectors besides the corpus; JSON values by name.
        make_plan: of how many documents.
        rules: how many documents may be left out.
        origin: for the schema of the shards.

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

    def open(self) -> Rounds:
        there = self._there()
        if not there and any(self.out.glob("*.arrow")):
            raise EncodingError(f"{self.out} holds Arrow files of something else; name a new folder with --out")
        facts = self._facts(self.corpus)
        if not there:
            return Rounds([self._claim(0, self.corpus)])
        for of_round in there:
            self._require_same(of_round, self.settings)
        if len(there) == 1 and all(there[0].get(name) == facts[name] for name in _OF_CORPUS):
            first = self._round(0, self.corpus, there[0])
            return Rounds([first], self._changed([first]))
        if len(there) == 1 and not self._begun(0, there[0]):
            self._forget(0)
            return Rounds([self._claim(0, self.corpus)])
        if not isinstance(self.corpus, FolderImages):
            self._require_same(there[0], facts)
            raise EncodingError(f"{self.out} holds a folder of images; name a new folder with --out")
        return self._grown(there, self.corpus)

    def _grown(self, there: list[dict], corpus: FolderImages) -> Rounds:
        if len(there) > 1 and not self._begun(len(there) - 1, there[-1]):
            self._forget(len(there) - 1)
            there = there[:-1]
        names = [self._names(number, facts) for number, facts in enumerate(there)]
        now, before = set(corpus.names.to_pylist()), {name for of_round in names for name in of_round}
        gone = frozenset(before - now)
        rounds = [self._round(number, corpus.of(names[number]), facts, gone) for number, facts in enumerate(there)]
        new = [name for name in corpus.names.to_pylist() if name not in before]
        notes = self._changed(rounds)
        encoded = sorted(gone.intersection(name for of_round in rounds for name in of_round.shards.ids()))
        if encoded:
            notes.append(
                f"{self.out}: {len(encoded):,} images that were encoded are gone from {corpus.origin} (e.g. "
                f"{one_line(encoded[0])}); their vectors stay: delete their ids from an index, or name a new folder "
                "with --out"
            )
        if new:
            rounds.append(self._claim(len(there), corpus.of(new), gone))
        total = len(now)
        for of_round in rounds:
            of_round.shards.allow(self.rules.allowed(total), total)
        return Rounds(rounds, notes)

    def _there(self) -> list[dict]:
        found: list[dict] = []
        while (file := self._facts_file(len(found))).exists():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(content["documents"], int) or not isinstance(content["run"], str):
                    raise ValueError("no number of documents, or no run")
            except (OSError, ValueError, KeyError, TypeError) as error:
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

    def _facts_file(self, number: int) -> Path:
        return self.out / (f"encoding-{number}.json" if number else FACTS)

    def _names_file(self, number: int) -> Path:
        return self.out / (f"encoding-{number}-names.gz" if number else "encoding-names.gz")

    def _round(self, number: int, corpus: Images | Texts, facts: dict, gone: frozenset[str] = frozenset()) -> Round:
        files = self._facts_file(number), self._names_file(number)
        stem = f"shard-added{number}-" if number else "shard-"
        plan = self.make_plan(facts["documents"])
        shards = ShardFolder(self.out, plan, facts["run"], self.rules, self.lock, stem, files, gone, self.origin)
        return Round(corpus, shards)

    def _claim(self, number: int, corpus: Images | Texts, gone: frozenset[str] = frozenset()) -> Round:
        facts = self._facts(corpus)
        if isinstance(corpus, FolderImages):  # the names first: whoever finds the facts may need them
            content = gzip.compress("\0".join(corpus.names.to_pylist()).encode(), 1)
            write_whole(self._names_file(number), lambda file: file.write(content))
            give_usual_rights(self._names_file(number))
        write_json(facts, self._facts_file(number))
        return self._round(number, corpus, facts, gone)

    def _begun(self, number: int, facts: dict) -> bool:
        return bool(self._round(number, self.corpus, facts).shards.finished())

    def _forget(self, number: int) -> None:
        """Remove what a round without a finished shard left."""
        for file in self._round(number, self.corpus, {"documents": 1, "run": ""}).shards.lists():
            file.unlink(missing_ok=True)
        self._facts_file(number).unlink()
        self._names_file(number).unlink(missing_ok=True)

    def _names(self, number: int, facts: dict) -> list[str]:
        """Of a round's documents, in their order where one is left to encode."""
        file = self._names_file(number)
        try:
            if file.exists():
                names = gzip.decompress(file.read_bytes()).decode().split("\0")
                if len(names) != facts["documents"]:
                    raise ValueError(f"{len(names):,} names, not {facts['documents']:,}")
                return names
        except (OSError, EOFError, ValueError) as error:
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
            for name in self.corpus.written_after(of_round.shards.written(shard), of_round.shards.documents_of(shard))
        ]
        if not changed:
            return []
        return [
            f"{self.out}: {len(changed):,} images were changed after they were encoded (e.g. {one_line(changed[0])}); "
            "they are not encoded anew: name a new folder with --out"
        ]
