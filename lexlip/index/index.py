"""An index opened for searching."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import unpacked
from lexlip.index.conditions import ANY, Conditions
from lexlip.index.layout import COUNT
from lexlip.index.origin import require_model
from lexlip.index.queries import Bag, Model, Query, Words, bag_of, bags_of, each_query, pack
from lexlip.index.segment import Segment
from lexlip.index.store import MANIFEST, Manifest, open_segments, read_manifest
from lexlip.sparse import SparseRows

CANDIDATES = 200
# Below these a thread costs more than it saves: queries of a batch, and documents that they are searched in.
_QUERIES_PER_THREAD = 16
_DOCUMENTS_PER_THREAD = 1 << 22
_scratch = threading.local()


class Hit(NamedTuple):
    """A document of a result, and its score."""

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


class Best(NamedTuple):
    """The best documents of several queries, by segment and number, best first.

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

    def __init__(self, folder: Path, manifest: Manifest, segments: list[Segment], model: Model | None = None):
        self.folder, self.manifest, self.segments = folder, manifest, segments
        self.model = model

    @classmethod
    def open(
        cls, path: str | Path, model: Model | str | Path | None = None, trust_sources: bool = False, *,
        force: bool = False,
    ) -> Index:  # fmt: skip
        """Open the current state. Takes milliseconds: postings are read when they are searched.

        Args:
            path: the index's folder.
            model: for queries that are texts, images or words; a model, or its folder or name.
            trust_sources: of `LexLIP.from_pretrained`.
            force: take a model that did not make the vectors.

        Raises:
            IndexingError: no index there, or a model that did not make its vectors.
            DamagedIndex: files that are not what was written, as far as that shows without reading all of them.
            CheckpointError: no such model.
        """
        folder, loaded, name = Path(path), None, ""
        while True:
            manifest = read_manifest(folder)
            if loaded is None:
                loaded, name = loaded_model(model, trust_sources)
            if loaded is not None and not force:
                require_model(folder, manifest.model, loaded, name, manifest.sources)
            try:
                return cls(folder, manifest, list(open_segments(folder, manifest)), loaded)
            except FileNotFoundError as error:
                # A writer may have published the next state, and removed these files, since the manifest was read.
                if read_manifest(folder).generation == manifest.generation:
                    raise DamagedIndex(f"{error.filename} is missing, but {folder / MANIFEST} names it") from error

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return sum(entry.documents - entry.deleted for entry in self.manifest.segments)

    def search(
        self, query: Query, k: int = 10, *, drop: float = 0.0, candidates: int = CANDIDATES,
        threads: int | None = None, without: Words | None = None, required: Words | None = None,
        ids: Callable[[Any], bool] | None = None, penalties: Words | None = None,
    ) -> list[Hit]:  # fmt: skip
        """The k best documents, best first; fewer if fewer share a term with the query.

        Args:
            query: a mapping of terms or words to weights, (terms, weights), a (V,) vector, a text or a PIL image.
            k: at least 1.
            drop: 0 finds exactly the best. Above 0, in each segment the terms that have most postings for what they
                can add are left out, as long as together they can add at most this fraction of the largest possible
                score; the `candidates` best by the other terms then get their whole score.
            candidates: as above.
            threads: at most; None: as many as there are processors. Results do not depend on it.
            without: terms or words, and a weight that no result's own weight for them is above.
            required: the same, and every result's own weight for them is above it.
            ids: of every result: whether an id may be one.
            penalties: times a result's weight for a term or word, taken off its score. Documents that share no term
                with the query are not found for all that; scores may be below 0.

        With all of these, too, the result is exact where `drop` is 0.

        Raises:
            IndexingError: an invalid query or number.
            DamagedIndex: a list or an id that is not what was written.
        """
        options: dict[str, Any] = dict(drop=drop, candidates=candidates, threads=threads)
        conditions = ANY
        if without or required or penalties or ids is not None:
            words = {"without": without, "required": required, "penalties": penalties}
            conditions = Conditions.of_words(self.model, ids, **words)
        bag = bag_of(query, self.model)
        if conditions.penalties:
            return self._penalised(bag, k, conditions, options)
        return self._hits(self._best([bag], k, conditions=conditions, **options), 0)

    def search_batch(
        self, queries: Sequence[Query], k: int = 10, *, drop: float = 0.0, candidates: int = CANDIDATES,
        threads: int | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """`search` for several queries at once, on all processors. Texts and images are encoded in batches.

        Raises:
            IndexingError: as `search`; names the query.
        """
        bags = bags_of(each_query(queries), self.model)
        best = self._best(bags, k, drop, candidates, threads)
        return [self._hits(best, row) for row in range(len(bags))]

    def _hits(self, best: Best, row: int) -> list[Hit]:
        return [
            Hit(self.segments[segment].ids[document], score)
            for segment, document, score in zip(*(column[row].tolist() for column in best))
            if segment >= 0
        ]

    def _best(
        self, bags: Sequence[Bag], k: int, drop: float, candidates: int, threads: int | None,
        conditions: Conditions = ANY,
    ) -> Best:  # fmt: skip
        rows = pack(bags)
        k = min(whole_count("k", k), max(len(self), 1))
        if not 0 <= drop < 1:
            raise IndexingError(f"drop={drop}: a fraction from 0, which is exact, to below 1")
        options = k, drop, whole_count("candidates", candidates), conditions
        return self._search(rows, whole_count("threads", threads or os.cpu_count() or 1), options)

    def _penalised(self, bag: Bag, k: int, conditions: Conditions, options: dict[str, Any]) -> list[Hit]:
        """The best after penalties: of more and more of the best before them, until none of the others can be one."""
        k = min(whole_count("k", k), max(len(self), 1))
        for most in tries(k):
            best = self._best([bag], most, conditions=conditions, **options)
            scores = best.scores[0].copy()
            for number in np.unique(best.segments[0]).tolist():
                if number >= 0:
                    of_segment = best.segments[0] == number
                    documents = best.documents[0, of_segment]
                    scores[of_segment] -= conditions.penalty(self.segments[number], documents)
            lowered = best._replace(scores=scores[None])
            found = np.flatnonzero(best.segments[0] >= 0)
            if len(found) > k:  # ids, which decide between equal scores, are looked at for as few as can be
                found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
            order = sorted(found.tolist(), key=lambda number: self._rank(lowered, 0, number))[:k]
            # A score without penalties bounds those of all documents that were not looked at.
            done = best.segments[0, -1] < 0 or len(best.scores[0]) == len(self)
            if done or lowered.scores[0, order[-1]] > best.scores[0, -1]:
                return self._hits(Best(*(column[:, order] for column in lowered)), 0)
        raise AssertionError

    def explain(self, query: Query, id: int | str) -> list[Share]:
        """What each shared term adds to a document's score, most first.

        Raises:
            IndexingError: no document with this id, or no such query.
        """
        bag = bag_of(query, self.model)
        number, document = self.place(id)
        segment = self.segments[number]
        codes = {term: segment.code(term, document) for term in bag[0].tolist()}
        stored = {term: float(segment.impacts[code]) for term, code in codes.items() if code is not None}
        return shares_of(bag, stored, self.model)

    def document_terms(self, ids: Sequence[int | str], top_k: int | None = None) -> list[Bag]:
        """See `lexlip.index.documents.document_terms`."""
        from lexlip.index.documents import document_terms

        return document_terms(self, ids, top_k)

    def document_frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) terms, ascending, and (T,) how many documents hold each; those that are deleted count until a merge."""
        terms = np.concatenate([np.empty(0, np.int64), *(segment.terms for segment in self.segments)])
        counts = np.concatenate([np.empty(0, np.int64), *(segment.table[:, COUNT] for segment in self.segments)])
        unique, inverse = np.unique(terms.astype(np.int64), return_inverse=True)
        return unique, np.bincount(inverse, counts, len(unique)).astype(np.int64)

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
            "model": asdict(self.manifest.model) if self.manifest.model else None,
            "sources": [asdict(source) for source in self.manifest.sources],
            "segments": [asdict(entry) for entry in self.manifest.segments],
        }

    def verify(self) -> list[str]:
        """Read every byte of this state's files; returns what is damaged, nothing if all is well."""
        return [line for segment in self.segments for line in segment.damage()]

    def holds(self, id: int | str) -> bool:
        """Whether a document has this id and is not deleted."""
        return self._found(id) is not None

    def place(self, id: int | str) -> tuple[int, int]:
        """Segment and document number of an id that is alive."""
        if (found := self._found(id)) is None:
            raise IndexingError(f"no document has the id {id!r}")
        return found

    def _found(self, id: int | str) -> tuple[int, int] | None:
        if isinstance(id, str if self.manifest.settings.ids == "string" else (int, np.integer)):
            for number, segment in enumerate(self.segments):
                document = segment.ids.find(id)
                if document is not None and segment.is_alive(document):
                    return number, document
        return None

    def _search(self, queries: SparseRows, threads: int, options: tuple[int, float, int, Conditions]) -> Best:
        """Divide the queries, and the segments if that is not enough, among the threads."""
        rows = max(1, min(threads, len(queries) // _QUERIES_PER_THREAD))
        groups: list[Sequence[int]] = [range(len(self.segments))]
        if threads >= 2 * rows and len(self) * len(queries) > _DOCUMENTS_PER_THREAD * rows:
            groups = [[number] for number in groups[0]] or groups
        if rows == len(groups) == 1:
            return self._search_segments(groups[0], queries, *options)
        from concurrent.futures import ThreadPoolExecutor

        bounds = np.linspace(0, len(queries), rows + 1).astype(int).tolist()
        with ThreadPoolExecutor(min(threads, rows * len(groups))) as pool:
            parts = [
                [pool.submit(self._search_segments, group, part, *options) for group in groups]
                for part in (queries.between(first, last) for first, last in zip(bounds, bounds[1:]))
            ]
            best = [functools.reduce(self._merged, (part.result() for part in of_rows)) for of_rows in parts]
        return Best(*(np.concatenate(column) for column in zip(*best)))

    def _search_segments(
        self, numbers: Sequence[int], queries: SparseRows, k: int, drop: float, candidates: int,
        conditions: Conditions,
    ) -> Best:  # fmt: skip
        """Some segments, one after another, in numpy alone while that is quicker than the wait for numba."""
        small = not drop and not unpacked.exhausted() and unpacked.affordable(self._postings(numbers, queries))
        shape = (len(queries), k)
        best, at_least = None, np.zeros(len(queries))
        for number in numbers:
            segment = self.segments[number]
            left_out = conditions.left_out(segment)
            if small:
                documents, scores = _unpacked(segment, queries, k, left_out)
            else:
                documents, scores = _compiled(segment, queries, k, left_out, at_least, drop, candidates)
            part = Best(np.where(documents < 0, -1, number), documents, scores)
            best = part if best is None else self._merged(best, part)
            at_least = best.scores[:, -1].copy()
        return best or Best(np.full(shape, -1), np.full(shape, -1), np.zeros(shape))

    def _postings(self, numbers: Sequence[int], queries: SparseRows) -> int:
        """How many postings a search of some segments comes across, each segment's ids counted as some."""
        total = 0
        for number in numbers:
            segment = self.segments[number]
            rows = np.searchsorted(segment.terms, queries.terms)
            rows = rows[rows < len(segment.terms)]
            total += int(segment.table[rows, COUNT].sum()) + segment.documents // 4 * len(queries)
        return total

    def _merged(self, one: Best, other: Best) -> Best:
        """The best of both, row by row."""
        merged = Best(*(np.concatenate(pair, axis=1) for pair in zip(one, other)))
        k = one.scores.shape[1]
        for row in range(len(merged.scores)):
            order = np.argsort(-merged.scores[row], kind="stable")
            scores = merged.scores[row, order]
            if ((scores[1:] == scores[:-1]) & (scores[1:] > 0)).any():  # 0: no document
                order = np.array(sorted(order.tolist(), key=lambda number: self._rank(merged, row, number)))
            for column in merged:
                column[row] = column[row, order]
        return Best(*(column[:, :k] for column in merged))

    def _rank(self, best: Best, row: int, number: int) -> tuple:
        segment = best.segments[row, number]
        if segment < 0:
            return (0.0,)  # scores are above 0: after all of them, and equal to each other
        return -best.scores[row, number], self.segments[segment].ids[int(best.documents[row, number])]


def loaded_model(model: Model | str | Path | None, trust_sources: bool) -> tuple[Model | None, str]:
    """A model, and the folder or name that it was given by; empty where the model itself was."""
    if model is None or not isinstance(model, (str, Path)):
        return model, ""
    from lexlip.models.lexlip import LexLIP

    loaded: Any = LexLIP.from_pretrained(str(model), trust_sources=trust_sources)
    return loaded, str(model)


def shares_of(bag: Bag, stored: Mapping[int, float], model: Model | None) -> list[Share]:
    """What each term adds that a query and a document's stored weights share, most first."""
    tokenizer = model.tokenizer if model is not None else None
    shares = []
    for term, weight in zip(bag[0].tolist(), bag[1].tolist()):
        if term in stored:
            word: Any = tokenizer.convert_ids_to_tokens(term) if tokenizer is not None else None
            shares.append(Share(term, word, weight, stored[term], weight * stored[term]))
    return sorted(shares, key=lambda share: (-share.score, share.term))


def tries(k: int) -> Iterator[int]:
    """How many of the best are looked at for what penalties and conditions leave, again and again."""
    return (max(4 * k, CANDIDATES) << step for step in range(0, 60, 2))


def whole_count(name: str, value: int) -> int:
    """A whole number of at least 1, numpy's too."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise IndexingError(f"{name}={value}: a whole number of at least 1")
    return int(value)


def damage_of(path: str | Path) -> list[str]:
    """As `Index.verify`, also for an index that is too damaged to be opened: each segment is read by itself.

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
            damage += Segment(folder, entry, manifest.settings.ids).damage()
        except DamagedIndex as error:
            damage.append(str(error))
        except FileNotFoundError as error:
            damage.append(f"{error.filename} is missing, but {folder / MANIFEST} names it")
    return damage


def _compiled(
    segment: Segment, queries: SparseRows, k: int, left_out: np.ndarray, at_least: np.ndarray, drop: float,
    candidates: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(Q, k) documents of one segment, -1 where there are none, and scores; see `lexlip.index.scoring.search`."""
    from lexlip.index.scoring import BLOCK, search

    if not hasattr(_scratch, "sums"):
        _scratch.sums, _scratch.floor = np.zeros(BLOCK, np.int32), np.zeros(1, np.int64)
    documents, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    segment.file.require_whole()
    damaged = search(
        segment.data, segment.table, segment.skips, segment.terms, segment.impacts, segment.bits,
        segment.documents, left_out, segment.checked, queries.terms, queries.weights, queries.offsets,
        k, at_least, drop, candidates, _scratch.sums, _scratch.floor, documents, scores,
    )  # fmt: skip
    if damaged >= 0:
        segment.refuse_list(damaged)
    return documents, scores


def _unpacked(segment: Segment, queries: SparseRows, k: int, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, exact, without anything compiled."""
    documents, scores = np.full((len(queries), k), -1), np.zeros((len(queries), k))
    for row, (_, terms, weights) in enumerate(queries.documents()):
        held = [(n, list_row) for n, term in enumerate(terms) if (list_row := segment.row_of(term)) is not None]
        lists = [(found, segment.impacts[codes]) for found, codes in (segment.unpack(r) for _, r in held)]
        some, their = unpacked.best(lists, weights[[n for n, _ in held]], segment.documents, left_out, k)
        documents[row, : len(some)], scores[row, : len(some)] = some, their
    return documents, scores
