"""A segment: the postings and ids of some million documents in one file that never changes.

Sections of the container (`lexlip.index.container`; docs/INDEX.md has them in full):

    postings          the lists, one after another, and 8 zeros (`lexlip.index.codec`)
    lists             zlib: per list the gap to the term before, count, bytes, low bits and top impact code
    skips             per 256 postings of a list after its first 256: document and position of its one, uint32
    impacts           the weight that each impact code stands for, float16
    occurrences       how often each impact code was given, uint64
    ids, id_groups    `lexlip.index.id_column`

Everything but postings and ids is checked when a segment is opened: checksums, that each list lies within the postings,
and that none claims more than fits. What is read without a check can then be any bytes: decoding stays in bounds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lexlip.errors import DamagedIndex
from lexlip.index import id_column, impacts
from lexlip.index.container import ContainerReader, ContainerWriter, FileEntry
from lexlip.index.impacts import Codebook
from lexlip.index.layout import BEGIN, COLUMNS, COUNT, END, LOW, MAX_LOW_BITS, PADDING, SKIP_EVERY, SKIPS, TOP
from lexlip.sparse import Ids

MAX_DOCUMENTS = 1 << MAX_LOW_BITS
KIND, DELETIONS_KIND = "segment", "deletions"
_LIST_COLUMNS = (("<u4", "gap"), ("<u4", "count"), ("<u4", "bytes"), ("u1", "low"), ("<u2", "top"))


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as the manifest knows it.

    Attributes:
        file: its postings and ids.
        documents: how many it holds, deleted ones included.
        deleted: how many are deleted.
        deletions: which ones; None if there are none.
    """

    file: FileEntry
    documents: int
    deleted: int = 0
    deletions: FileEntry | None = None


class Segment:
    """A segment's file, mapped into memory.

    Args:
        folder: of the index.
        entry: names the files.

    Attributes:
        documents: how many, deleted ones included.
        postings: how many.
        data, table, skips, terms, impacts, bits, deleted: as `lexlip.index.scoring.search` takes them.
        ids: document number to id and back.

    Raises:
        DamagedIndex: bytes that are not what was written.
        FileNotFoundError: no such file.
    """

    def __init__(self, folder: Path, entry: SegmentEntry):
        self.file = ContainerReader(folder, entry.file, KIND)
        facts = self.file.footer
        self.documents: int = facts["documents"]
        self.postings: int = facts["postings"]
        self.bits: int = facts["impact_bits"]
        self.data = self.file.section("postings", check=False)
        self.terms, self.table = self._lists(facts["lists"])
        self.skips = self.file.section("skips", "<u4").reshape(-1, 2)
        self.impacts = self.file.section("impacts", "<f2").astype(np.float64)
        self.ids = id_column.read(self.file)
        self._deletions: ContainerReader | None = None
        self.deleted = np.empty(0, np.uint8)
        if entry.deletions is not None:
            self._deletions = ContainerReader(folder, entry.deletions, DELETIONS_KIND)
            self.deleted = self._deletions.section("deleted")
            if len(self.deleted) != (self.documents + 7) // 8:
                raise DamagedIndex(
                    f"{self._deletions.path} does not belong to {self.file.path}: it is for another number of documents"
                )
        self._check()

    def alive(self) -> np.ndarray:
        """(documents,) bool."""
        if not len(self.deleted):
            return np.ones(self.documents, bool)
        return np.unpackbits(self.deleted, count=self.documents, bitorder="little") == 0

    def is_alive(self, document: int) -> bool:
        """Whether a document is not deleted."""
        return not len(self.deleted) or not self.deleted[document >> 3] >> (document & 7) & 1

    def damage(self) -> list[str]:
        """Read its files; returns what is damaged, nothing if all is well."""
        return self.file.damage() + (self._deletions.damage() if self._deletions else [])

    def all_ids(self) -> Ids:
        """Ids of all documents, ascending, after their checksums.

        Raises:
            DamagedIndex: they are not what was written.
        """
        self.file.section("ids")
        return self.ids.all()

    def codebook(self) -> Codebook:
        """Of its impacts."""
        values = np.unique(self.impacts[self.impacts > 0])
        return impacts.from_values(values, self.bits, self.file.footer["impact_error"])

    def histogram(self) -> np.ndarray:
        """(2^16,) of its weights as they are stored, deleted documents included."""
        weights = self.impacts.astype(np.float16).view(np.uint16)
        return np.bincount(weights, self.file.section("occurrences", "<u8"), 1 << 16).astype(np.int64)

    def code(self, term: int, document: int) -> int | None:
        """A document's impact code for a term; None if it does not hold the term."""
        from lexlip.index.codec import find

        row = int(np.searchsorted(self.terms, term))
        if row == len(self.terms) or self.terms[row] != term:
            return None
        code = find(self.data, self.skips, self.table[row], self.bits, document)
        return code if code >= 0 else None

    def _lists(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        columns = zlib.decompress(self.file.section("lists").data)
        values, begin = {}, 0
        for dtype, name in _LIST_COLUMNS:
            values[name] = np.frombuffer(columns, dtype, number, begin).astype(np.int64)
            begin += number * np.dtype(dtype).itemsize
        table = np.zeros((number, COLUMNS), np.int64)
        table[:, END] = values["bytes"].cumsum()
        table[:, BEGIN] = table[:, END] - values["bytes"]
        table[:, COUNT], table[:, LOW], table[:, TOP] = values["count"], values["low"], values["top"]
        skips = (values["count"] - 1) // SKIP_EVERY
        table[:, SKIPS] = skips.cumsum() - skips
        return (values["gap"].cumsum() - 1).astype(np.uint32), table

    def _check(self) -> None:
        """Refuse a table by which decoding could read outside the postings or the impacts."""
        count, low = self.table[:, COUNT], self.table[:, LOW]
        fields = (count * (low + self.bits) + 7) // 8
        good = (
            len(self.data) >= PADDING
            and (not len(count) or self.table[-1, END] == len(self.data) - PADDING)
            and (count > 0).all()
            and (count <= self.documents).all()
            and (low <= MAX_LOW_BITS).all()
            and (self.table[:, BEGIN] + fields + (count + 7) // 8 <= self.table[:, END]).all()
            and (self.table[:, TOP] < len(self.impacts)).all()
            and len(self.impacts) == 1 << self.bits
            and ((count - 1) // SKIP_EVERY).sum() == len(self.skips)
            and self.documents <= MAX_DOCUMENTS
        )
        if not good:
            raise DamagedIndex(f"{self.file.path}: its lists do not fit its postings")


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
    columns = b"".join(values[name].astype(dtype).tobytes() for dtype, name in _LIST_COLUMNS)
    out.begin("lists", zlib.compress(columns, 9))
    out.begin("skips", np.concatenate([np.zeros((0, 2), np.uint32), *skips]).astype("<u4"))
    out.begin("impacts", codebook.values.astype("<f2"))
    out.begin("occurrences", np.bincount(codebook.code_of, histogram, 1 << codebook.bits).astype("<u8"))
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
