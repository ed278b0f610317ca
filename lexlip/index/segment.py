"""A segment: the postings and ids of some million documents in one file that never changes.

Sections of the container (`lexlip.index.container`; docs/INDEX.md has them in full):

    postings          the lists, one after another, and 8 zeros (`lexlip.index.codec`)
    lists             zlib: per list the gap to the term before, count, bytes, low bits and top impact code
    skips             per 256 postings of a list after its first 256: document and position of its one, uint32
    impacts           the weight that each impact code stands for, float16
    occurrences       how often each impact code was given, uint64
    ids, id_groups    `lexlip.index.id_column`

Everything but postings and ids is checked when a segment is opened, those when they are first used: see
`lexlip.index.check`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import check, id_column, impacts, unpacked
from lexlip.index.check import LIST_COLUMNS, MAX_DOCUMENTS, MAX_EMPTY
from lexlip.index.container import ContainerReader, ContainerWriter, FileEntry
from lexlip.index.impacts import Codebook
from lexlip.index.layout import BEGIN, COLUMNS, COUNT, END, LOW, PADDING, SKIP_EVERY, TOP
from lexlip.sparse import Ids

KIND, DELETIONS_KIND = "segment", "deletions"


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as the manifest knows it.

    Attributes:
        file: its postings and ids.
        documents: how many it holds, deleted ones included.
        deleted: how many are deleted.
        deletions: which ones; None if there are none.
        sources: numbers of the manifest's sources that its documents came from, as far as they are known.
    """

    file: FileEntry
    documents: int
    deleted: int = 0
    deletions: FileEntry | None = None
    sources: tuple[int, ...] = ()


class Segment:
    """A segment's file, in memory or mapped into it.

    Args:
        folder: of the index.
        entry: names the files.
        ids: the kind that they must be of, "int" or "string".

    Attributes:
        documents: how many, deleted ones included.
        postings: how many.
        data, table, skips, terms, impacts, bits, deleted, checked: as `lexlip.index.scoring.search` takes them.
        ids: document number to id and back.

    Raises:
        DamagedIndex: bytes that are not what was written.
        FileNotFoundError: no such file.
        IndexingError: more files than may be open.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, ids: str):
        self.file = file = ContainerReader(folder, entry.file, KIND)
        self.path = file.path
        self.documents = file.facts.whole("documents", 0, MAX_DOCUMENTS)
        check.require(
            self.documents == entry.documents, self.path, f"{self.documents:,} documents, not {entry.documents:,}"
        )
        self.bits = file.facts.whole("impact_bits", impacts.MIN_BITS, impacts.MAX_BITS)
        self.fitted_error = file.facts.number("impact_error")
        self.data = file.section("postings", check=False)
        skips = file.section("skips", "<u4")
        check.require(len(skips) % 2 == 0, self.path, "section skips ends inside a pair")
        self.skips = skips.reshape(-1, 2)
        lists = file.facts.whole("lists")
        self.terms, self.table = check.lists(
            self.data, file.section("lists"), lists, self.bits, self.documents, len(self.skips), self.path
        )
        self.postings = file.facts.whole("postings")
        check.require(self.postings == int(self.table[:, COUNT].sum()), self.path, "another number of postings")
        self.impacts = check.impacts(file.section("impacts", "<f2"), self.bits, lists > 0, self.path)
        self._occurrences = check.occurrences(file.section("occurrences", "<u8"), self.bits, self.path)
        self.ids = id_column.read(file, self.documents, ids)
        self._deletions: ContainerReader | None = None
        self.deleted = np.empty(0, np.uint8)
        if entry.deletions is not None:
            self._deletions = ContainerReader(folder, entry.deletions, DELETIONS_KIND)
            self.deleted = self._deletions.section("deleted")
            check.deletions(self.deleted, self.documents, entry.deleted, self._deletions.path)
        self.checked = np.zeros(lists, np.uint8)  # lists whose bytes were looked at

    def alive(self) -> np.ndarray:
        """(documents,) bool."""
        if not len(self.deleted):
            return np.ones(self.documents, bool)
        return np.unpackbits(self.deleted, count=self.documents, bitorder="little") == 0

    def is_alive(self, document: int) -> bool:
        """Whether a document is not deleted."""
        return not len(self.deleted) or not self.deleted[document >> 3] >> (document & 7) & 1

    def damage(self) -> list[str]:
        """Read its files, and everything in them as a search or a merge would; returns what is wrong, best nothing."""
        damage = self.file.damage() + (self._deletions.damage() if self._deletions else [])
        if damage:
            return damage
        try:
            self.require_lists()
            self.all_ids()
        except DamagedIndex as error:
            return [str(error)]
        return []

    def require_lists(self, rows: Iterable[int] | None = None) -> None:
        """Look at lists that nobody looked at yet, all of them or those of some rows of the table.

        Raises:
            DamagedIndex: one is not what was written.
        """
        from lexlip.index.codec import first_unsound

        self.file.require_whole()
        for part in [slice(None)] if rows is None else [slice(row, row + 1) for row in rows]:
            table, checked = self.table[part], self.checked[part]
            row = first_unsound(self.data, self.skips, table, self.bits, self.documents, checked)
            if row >= 0:
                self.refuse_list(row + (part.start or 0))

    def refuse_list(self, row: int) -> NoReturn:
        """Raises DamagedIndex for a list that is not what was written."""
        raise DamagedIndex(f"{self.path}: the list of term {self.terms[row]} is damaged")

    def all_ids(self) -> Ids:
        """Ids of all documents, ascending, after their checksums.

        Raises:
            DamagedIndex: they are not what was written.
        """
        self.file.require_whole()
        self.file.section("ids")
        return self.ids.all()

    def codebook(self) -> Codebook:
        """Of its impacts."""
        values = np.unique(self.impacts[self.impacts > 0])
        return impacts.from_values(values, self.bits, self.fitted_error)

    def histogram(self) -> np.ndarray:
        """(2^16,) of its weights as they are stored, deleted documents included."""
        weights = self.impacts.astype(np.float16).view(np.uint16)
        return np.bincount(weights, self._occurrences, 1 << 16).astype(np.int64)

    def row_of(self, term: int) -> int | None:
        """The row of a term's list in the table; None if no document holds the term."""
        row = int(np.searchsorted(self.terms, term))
        return row if row < len(self.terms) and self.terms[row] == term else None

    def postings_of(self, term: int) -> tuple[np.ndarray, np.ndarray]:
        """(N,) documents that hold a term, ascending, deleted ones too, and their stored weights in float64.

        Raises:
            DamagedIndex: the term's list is not what was written.
        """
        row = self.row_of(term)
        if row is None:
            return np.empty(0, np.int64), np.empty(0)
        count = int(self.table[row, COUNT])
        if unpacked.affordable(count):
            documents, codes = self.unpack(row)
        else:
            from lexlip.index.codec import decode

            self.require_lists([row])
            documents, codes = np.empty(count, np.int64), np.empty(count, np.int64)
            decode(self.data, self.table[row], self.bits, documents, codes)
        return documents, self.impacts[codes]

    def unpack(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents and impact codes of a list, in numpy alone.

        Raises:
            DamagedIndex: it is not what was written.
        """
        self.file.require_whole()
        found = unpacked.unpack(self.data, self.skips, self.table[row], self.bits, self.documents)
        return found or self.refuse_list(row)

    def code(self, term: int, document: int) -> int | None:
        """A document's impact code for a term; None if it does not hold the term.

        Raises:
            DamagedIndex: the term's list is not what was written.
        """
        row = self.row_of(term)
        if row is None:
            return None
        if unpacked.affordable(int(self.table[row, COUNT])):
            documents, codes = self.unpack(row)
            place = int(np.searchsorted(documents, document))
            return int(codes[place]) if place < len(documents) and documents[place] == document else None
        from lexlip.index.codec import find

        self.require_lists([row])
        code = find(self.data, self.skips, self.table[row], self.bits, document)
        return code if code >= 0 else None


def write_segment(path: Path, ids: Ids, sources: list, codebook: Codebook, histogram: np.ndarray) -> FileEntry:
    """Write a segment, memory being that of some million postings.

    Args:
        path: a new file.
        ids: of its documents, ascending.
        sources: of its postings, as `lexlip.index.runs.groups` takes them.
        codebook: for its weights.
        histogram: (2^16,) of the weights that came in.

    Raises:
        IndexingError: a document holds a term twice.
    """
    from lexlip.index.codec import encode, room
    from lexlip.index.runs import groups

    out = ContainerWriter(path, KIND)
    out.begin("postings")
    tables, skips, terms = [], [], []
    for group_terms, offsets, keys in groups(sources, ids):
        space = np.zeros(room(len(keys), len(group_terms), codebook.bits), np.uint8)
        table = np.zeros((len(group_terms), COLUMNS), np.int64)
        group_skips = np.zeros((len(keys) // SKIP_EVERY, 2), np.uint32)
        length, skipped = encode(keys, offsets, codebook.code_of, codebook.bits, space, table, group_skips)
        out.write(space[:length])
        terms.append(group_terms)
        tables.append(table)
        skips.append(group_skips[:skipped])
    out.write(bytes(PADDING))
    table = np.concatenate([np.zeros((0, COLUMNS), np.int64), *tables])
    gaps = np.diff(np.concatenate([np.zeros(0, np.int64), *terms]).astype(np.int64), prepend=-1)
    values: dict[str, np.ndarray] = {
        "gap": gaps, "count": table[:, COUNT], "bytes": table[:, END] - table[:, BEGIN],
        "low": table[:, LOW], "top": table[:, TOP],
    }  # fmt: skip
    columns = b"".join(values[name].astype(dtype).tobytes() for dtype, name in LIST_COLUMNS)
    out.begin("lists", zlib.compress(columns, 9))
    out.begin("skips", np.concatenate([np.zeros((0, 2), np.uint32), *skips]).astype("<u4"))
    out.begin("impacts", codebook.values.astype("<f2"))
    out.begin("occurrences", np.bincount(codebook.code_of, histogram, 1 << codebook.bits).astype("<u8"))
    if len(ids) > int(table[:, COUNT].sum()) + MAX_EMPTY:
        raise IndexingError(f"more than {MAX_EMPTY:,} documents of a segment have no term: leave such documents out")
    facts = id_column.write(ids, out)
    return out.close(
        documents=len(ids), postings=int(table[:, COUNT].sum()), lists=len(table), ids=facts,
        impact_bits=codebook.bits, impact_error=codebook.fitted_error,
    )  # fmt: skip


def write_deletions(path: Path, alive: np.ndarray) -> FileEntry:
    """Write which documents of a segment are deleted."""
    out = ContainerWriter(path, DELETIONS_KIND)
    out.begin("deleted", np.packbits(~alive, bitorder="little"))
    return out.close(documents=len(alive))
