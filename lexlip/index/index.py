"""An index opened for searching."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index.queries import Queries, Query, bag_of, pack
from lexlip.index.segment import Segment
from lexlip.index.store import MANIFEST, Manifest, read_manifest
from lexlip.index.writer import open_segment

if TYPE_CHECKING:
    from lexlip.models.lexlip import LexLIP

CANDIDATES = 200
# Below these a thread costs more than it saves: queries of a batch, and documents that they are searched in.
_QUERIES_PER_THREAD = 16
_DOCUMENTS_PER_THREAD = 1 << 22
_scratch = threading.local()


class Hit(NamedTuple):
    """A document that was found."""

    id: int | str
    score: float


class Share(NamedTuple):
    """What a term adds to a document's score: query * document.

    Attributes:
        term: its number.
        word: by the model's vocabulary; None without a model.
        query, document: its weight in the query, and in the document as stored.
        score: their product.
    """

    term: int
    word: str | None
    query: float
    document: float
    score: float


class Found(NamedTuple):
    """Best documents of several queries, by segment and number, best first.

    Attributes:
        segments, documents: (Q, k) int64; -1 after a query's last one.
        scores: (Q, k) float64, 0 after the last.
    """

    segments: np.ndarray
    documents: np.ndarray
    scores: np.ndarray


class Index:
    """A state of an index, searchable from any number of threads; what writers publish later does not change it.

    Use `Index.open`. A document's score is the sum over the shared terms of query weight x stored weight, in float64,
    terms in ascending order. Documents that share no term are not found. Equal scores are ordered by id, ascending:
    numbers by value, strings by their UTF-8 bytes.
    """

    def __init__(self, folder: Path, manifest: Manifest, segments: list[Segment], model: LexLIP | None = None):
        self.folder, self.manifest, self.segments = folder, manifest, segments
        self.model = model

    @classmethod
    def open(cls, path: str | Path, model: LexLIP | str | Path | None = None) -> Index:
        """Open the current state. Takes milliseconds: postings are read when they are searched.

        Args:
            path: the index's folder.
            model: for queries that are texts, pictures or words; a model, or its folder or name.

        Raises:
            IndexingError: no index there.
            DamagedIndex: files that are not what was written, as far as that shows without reading all of them.
            CheckpointError: no such model.
        """
        folder = Path(path)
        if isinstance(model, (str, Path)):
            from lexlip.models.lexlip import LexLIP

            model = LexLIP.from_pretrained(model)
        while True:
            manifest = read_manifest(folder)
            try:
                return cls(folder, manifest, [open_segment(folder, entry) for entry in manifest.segments], model)
            except FileNotFoundError as error:
                # A writer may have published the next state, and removed these files, since the manifest was read.
                if read_manifest(folder).generation == manifest.generation:
                    raise DamagedIndex(f"{error.filename} is missing, but {folder / MANIFEST} names it") from error

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return sum(entry.documents - entry.deleted for entry in self.manifest.segments)

    def search(
        self, query: Query, k: int = 10, *, drop: float = 0.0, candidates: int = CANDIDATES, threads: int | None = None
    ) -> list[Hit]:
        """The k best documents, best first; fewer if fewer share a term with the query.

        Args:
            query: a mapping of terms or words to weights, (terms, weights), a (V,) vector, a text or a PIL picture.
            k: at least 1.
            drop: 0 finds exactly the best. Above 0, in each segment the terms that have most postings for what they
                can add are left out, as long as together they can add at most this share of the largest possible
                score; the `candidates` best by the other terms then get their whole score.
            candidates: as above.
            threads: at most so many; None: as many as there are processors. Results do not depend on it.

        Raises:
            IndexingError: a query or a number that cannot be.
        """
        return self.search_batch([query], k, drop=drop, candidates=candidates, threads=threads)[0]

    def search_batch(
        self, queries: Sequence[Query], k: int = 10, *, drop: float = 0.0, candidates: int = CANDIDATES,
        threads: int | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """`search` for several queries at once, on all processors. Texts and pictures are encoded one by one."""
        packed = pack([bag_of(query, self.model) for query in queries])
        found = self.find(packed, k, drop=drop, candidates=candidates, threads=threads)
        return [
            [
                Hit(self.segments[segment].ids[document], score)
                for segment, document, score in zip(*(column[row].tolist() for column in found))
                if segment >= 0
            ]
            for row in range(len(queries))
        ]

    def find(
        self, queries: Queries, k: int, *, drop: float = 0.0, candidates: int = CANDIDATES, threads: int | None = None
    ) -> Found:
        """As `search_batch`, for rows of terms, and without the documents' ids. For benchmarks and adapters."""
        k = min(_count("k", k), max(len(self), 1))
        if not 0 <= drop < 1:
            raise IndexingError(f"drop={drop}: a share from 0, which is exact, to below 1")
        candidates = _count("candidates", candidates)
        threads = _count("threads", threads or os.cpu_count() or 1)
        rows = max(1, min(threads, len(queries) // _QUERIES_PER_THREAD))
        groups = [range(len(self.segments))]
        if threads >= 2 * rows and len(self) * len(queries) > _DOCUMENTS_PER_THREAD * rows:
            groups = [[number] for number in groups[0]] or groups
        if rows == len(groups) == 1:
            return self._find(groups[0], queries, 0, len(queries), k, drop, candidates)
        bounds = np.linspace(0, len(queries), rows + 1).astype(int).tolist()
        with ThreadPoolExecutor(min(threads, rows * len(groups))) as pool:
            parts = [
                [pool.submit(self._find, group, queries, first, last, k, drop, candidates) for group in groups]
                for first, last in zip(bounds, bounds[1:])
            ]
            found = [functools.reduce(self._merged, (part.result() for part in share)) for share in parts]
        return Found(*(np.concatenate(column) for column in zip(*found)))

    def explain(self, query: Query, id: int | str) -> list[Share]:
        """What each shared term adds to a document's score, most first.

        Raises:
            IndexingError: no document with this id, or no such query.
        """
        terms, weights = bag_of(query, self.model)
        number, document = self._place(id)
        segment = self.segments[number]
        tokenizer = self.model.tokenizer if self.model is not None else None
        shares = []
        for term, weight in zip(terms.tolist(), weights.tolist()):
            code = segment.code(term, document)
            if code is not None:
                stored = float(segment.impacts[code])
                word = tokenizer.convert_ids_to_tokens(term) if tokenizer is not None else None
                shares.append(Share(term, word, weight, stored, weight * stored))
        return sorted(shares, key=lambda share: (-share.score, share.term))

    def info(self) -> dict:
        """Numbers of this state: documents, postings, bytes on disk, settings, segments."""
        size = sum(file.bytes for file in self.manifest.files()) + (self.folder / MANIFEST).stat().st_size
        documents = len(self)
        return {
            "generation": self.manifest.generation,
            "documents": documents,
            "deleted": sum(entry.deleted for entry in self.manifest.segments),
            "postings": sum(segment.postings for segment in self.segments),
            "terms": len(np.unique(np.concatenate([[], *(segment.terms for segment in self.segments)]))),
            "bytes": size,
            "bytes_per_document": round(size / documents, 2) if documents else None,
            **asdict(self.manifest.settings),
            "segments": [asdict(entry) for entry in self.manifest.segments],
        }

    def verify(self) -> list[str]:
        """Read every byte of this state's files; returns what is damaged, nothing if all is well."""
        damage = []
        for entry, segment in zip(self.manifest.segments, self.segments):
            damage += segment.file.damage(entry.file.crc32)
            if segment.deletions is not None:
                damage += segment.deletions.damage(entry.deletions.crc32)
        return damage

    def _place(self, id: int | str) -> tuple[int, int]:
        """Segment and document number of an id that is alive."""
        if isinstance(id, str if self.manifest.settings.ids == "string" else (int, np.integer)):
            for number, segment in enumerate(self.segments):
                document = segment.ids.find(id)
                if document is not None and segment.is_alive(document):
                    return number, document
        raise IndexingError(f"no document has the id {id!r}")

    def _find(
        self, numbers: Sequence[int], queries: Queries, first: int, last: int, k: int, drop: float, candidates: int
    ) -> Found:
        """Rows first to last - 1 over some segments, one after another."""
        from lexlip.index.scoring import BLOCK, search

        if not hasattr(_scratch, "sums"):
            _scratch.sums, _scratch.floor = np.zeros(BLOCK, np.int32), np.zeros(1, np.int64)
        shape = (last - first, k)
        found = None
        at_least = np.zeros(last - first)
        for number in numbers:
            segment = self.segments[number]
            documents, scores = np.empty(shape, np.int64), np.empty(shape)
            search(
                segment.data, segment.table, segment.skips, segment.terms, segment.impacts, segment.bits,
                segment.documents, segment.deleted, queries.terms, queries.weights, queries.offsets[first : last + 1],
                k, at_least, drop, candidates, _scratch.sums, _scratch.floor, documents, scores,
            )  # fmt: skip
            part = Found(np.where(documents < 0, -1, number), documents, scores)
            found = part if found is None else self._merged(found, part)
            at_least = found.scores[:, -1].copy()
        return found or Found(np.full(shape, -1), np.full(shape, -1), np.zeros(shape))

    def _merged(self, one: Found, other: Found) -> Found:
        """The best of both, row by row."""
        merged = Found(*(np.concatenate(pair, axis=1) for pair in zip(one, other)))
        k = one.scores.shape[1]
        for row in range(len(merged.scores)):
            order = np.argsort(-merged.scores[row], kind="stable")
            scores = merged.scores[row, order]
            if ((scores[1:] == scores[:-1]) & (scores[1:] > 0)).any():  # 0: a place that is not filled
                order = np.array(sorted(order.tolist(), key=lambda place: self._rank(merged, row, place)))
            for column in merged:
                column[row] = column[row, order]
        return Found(*(column[:, :k] for column in merged))

    def _rank(self, found: Found, row: int, place: int) -> tuple:
        segment = found.segments[row, place]
        if segment < 0:
            return (0.0,)  # scores are above 0: after all of them, and equal to each other
        id = self.segments[segment].ids[int(found.documents[row, place])]
        return (-found.scores[row, place], id.encode() if isinstance(id, str) else id)


def _count(name: str, value: int) -> int:
    """A whole number of at least 1, numpy's too."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise IndexingError(f"{name}={value}: a whole number of at least 1")
    return int(value)


def damage_of(path: str | Path) -> list[str]:
    """As `Index.verify`, also for an index that is too damaged to be opened: each segment is looked at by itself.

    Raises:
        IndexingError: no index there.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
    except DamagedIndex as error:
        return [str(error)]
    damage = []
    for entry in manifest.segments:
        try:
            segment = open_segment(folder, entry)
        except DamagedIndex as error:
            damage.append(str(error))
        except FileNotFoundError as error:
            damage.append(f"{error.filename} is missing, but {folder / MANIFEST} names it")
        else:
            damage += Index(folder, replace(manifest, segments=(entry,)), [segment]).verify()
    return damage
