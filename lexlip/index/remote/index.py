"""An index in an engine elsewhere, searched by the calls of `Index`, with its answers up to float32 and ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.conditions import Conditions
from lexlip.index.index import Hit, Share, loaded_model, shares_of, tries, whole_count
from lexlip.index.origin import require_model
from lexlip.index.queries import Bag, Model, Query, Words, bag_of, bags_of, each_query
from lexlip.index.remote.calls import SEARCHING
from lexlip.index.remote.card import CARD, Card, read_frequencies, required_card
from lexlip.index.remote.collection import Collection
from lexlip.index.remote.server import Server
from lexlip.index.store import Manifest

if TYPE_CHECKING:
    from lexlip.index.places import Searchable

_AT_ONCE = 8  # queries of a batch
_READ = 1000  # documents whose vectors are asked for at once


class RemoteIndex:
    """A collection that an index was pushed to.

    Differences from `Index`: scores are the engine's float32 sums, and of several documents with the score of the last
    result the engine chooses; `drop` has no effect, because engines search exactly; documents without a term were never
    pushed. What is pushed later is found at once, while `manifest` stays what it was.

    Args:
        collection: of the engine.
        card: that it has.
        model: see `Index.open`.
    """

    def __init__(self, collection: Collection, card: Card, model: Model | None = None):
        self.folder, self.manifest, self.model = collection.where, card.manifest, model
        self._collection, self._card = collection, card

    def __len__(self) -> int:
        return self._card.documents

    def search(
        self, query: Query, k: int = 10, *, drop: float = 0.0, threads: int | None = None,
        without: Words | None = None, required: Words | None = None, ids: Callable[[Any], bool] | None = None,
        penalties: Words | None = None,
    ) -> list[Hit]:  # fmt: skip
        """See `Index.search`.

        Conditions are looked at here, in the best documents, of more and more of them until enough fulfil them: exact,
        and quick where they are not rare.

        Raises:
            IndexingError: an invalid query or number; k, or what conditions need, beyond what the engine gives.
            EngineError: it does not answer, or refuses.
        """
        words = {"without": without, "required": required, "penalties": penalties}
        conditions = Conditions.of_words(self.model, ids, **words)
        bag = bag_of(query, self.model)
        k, most = min(whole_count("k", k), max(1, len(self))), self._collection.max_k
        if not 0 <= drop < 1:
            raise IndexingError(f"drop={drop}: a fraction from 0, which is exact, to below 1")
        if k > most:
            raise IndexingError(f"k={k}: {self.folder} finds at most {most:,} documents")
        if not len(bag[0]):
            return []
        if conditions or conditions.penalties:
            return self._chosen(bag, k, conditions)
        return _ordered(self._collection.search([bag], k)[0])

    def search_batch(
        self, queries: Sequence[Query], k: int = 10, *, drop: float = 0.0, threads: int | None = None
    ) -> list[list[Hit]]:  # fmt: skip
        """`search` for several queries, `threads` (8) at a time. Texts and images are encoded in batches."""
        bags = bags_of(each_query(queries), self.model)
        at_once = whole_count("threads", threads or _AT_ONCE) if self._collection.parallel else 1
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda bag: self.search(bag, k, drop=drop), bags))

    def _chosen(self, bag: Bag, k: int, conditions: Conditions) -> list[Hit]:
        """The best that fulfil conditions, after penalties."""
        kept: list[Hit] = []
        seen: set[int | str] = set()
        for number in tries(k):
            number = min(number, self._collection.max_k)
            hits = self._collection.search([bag], number)[0]
            kept += self._fulfilling([hit for hit in hits if hit.id not in seen], conditions)
            kept = _ordered(kept)
            seen.update(hit.id for hit in hits)
            # A score without penalties bounds those of all documents that were not looked at.
            enough = len(kept) >= k and (not conditions.penalties or kept[k - 1].score > hits[-1].score)
            if enough or len(hits) < number:
                return kept[:k]
            if number == self._collection.max_k:
                break
        raise IndexingError(
            f"only {len(kept):,} of the best {self._collection.max_k:,} documents fulfil the conditions, and "
            f"{self.folder} gives no more: ask for fewer, or search an index in a folder"
        )

    def _fulfilling(self, hits: list[Hit], conditions: Conditions) -> Iterator[Hit]:
        chosen = [hit for hit in hits if conditions.ids is None or conditions.ids(hit.id)]
        if not (conditions.without or conditions.required or conditions.penalties):
            yield from chosen
            return
        for first in range(0, len(chosen), _READ):
            part = chosen[first : first + _READ]
            vectors = self._collection.vectors([hit.id for hit in part])
            for hit in part:
                held = dict(zip(*(column.tolist() for column in vectors[hit.id]))) if hit.id in vectors else {}
                lacks = any(held.get(term, -1.0) <= level for term, level in conditions.required.items())
                has = any(held.get(term, -1.0) > level for term, level in conditions.without.items())
                if held and not lacks and not has:
                    penalty = sum(factor * held.get(term, 0.0) for term, factor in sorted(conditions.penalties.items()))
                    yield Hit(hit.id, hit.score - penalty)

    def explain(self, query: Query, id: int | str) -> list[Share]:
        """See `Index.explain`."""
        bag = bag_of(query, self.model)
        terms, weights = self._held(id)
        return shares_of(bag, dict(zip(terms.tolist(), weights.tolist())), self.model)

    def holds(self, id: int | str) -> bool:
        """Whether a document has this id."""
        return self._fits(id) and id in self._collection.vectors([id])

    def document_terms(self, ids: Sequence[int | str], top_k: int | None = None) -> list[Bag]:
        """See `lexlip.index.documents.document_terms`."""
        held: dict[int | str, Bag] = {}
        for first in range(0, len(ids), _READ):
            held |= self._collection.vectors(ids[first : first + _READ])
        return [_heaviest(held[id] if id in held else self._held(id), top_k) for id in ids]

    def document_frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Index.document_frequencies`; of the state that was pushed."""
        return read_frequencies(self._collection, self._card)

    def _held(self, id: int | str) -> Bag:
        held = self._collection.vectors([id]) if self._fits(id) else {}
        if id not in held:
            raise IndexingError(f"no document has the id {id!r}")
        return held[id]

    def _fits(self, id: object) -> bool:
        return isinstance(id, str if self.manifest.settings.ids == "string" else (int, np.integer))


class EnginePlace:
    """A `Place` in an engine; one client for all that is opened there."""

    def __init__(self, server: Server):
        self._server = server

    def __str__(self) -> str:
        return str(self._server)

    @cached_property
    def _collection(self) -> Collection:
        return self._server.collection(SEARCHING)

    def manifest(self) -> Manifest:
        """Of the state that was pushed last."""
        return required_card(self._collection).manifest

    def open(
        self, model: Model | str | Path | None = None, trust_sources: bool = False, *, force: bool = False
    ) -> Searchable:  # fmt: skip
        """See `Index.open`."""
        card = required_card(self._collection)  # before what takes seconds
        loaded, name = loaded_model(model, trust_sources)
        if loaded is not None and not force:
            require_model(self, card.manifest.model, loaded, name)
        return RemoteIndex(self._collection, card, loaded)

    def stamp(self) -> object:
        """The card's text."""
        return self._collection.note(CARD)

    def close(self) -> None:
        """Let the connections, or the file, go."""
        if "_collection" in vars(self):
            vars(self).pop("_collection").close()


def _ordered(hits: list[Hit]) -> list[Hit]:
    """Best first, equal scores by id as `Index` has them: strings by their UTF-8 bytes."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id.encode() if isinstance(hit.id, str) else hit.id))


def _heaviest(bag: Bag, top_k: int | None) -> Bag:
    order = np.argsort(-bag[1], kind="stable")[:top_k]
    return bag[0][order], bag[1][order]
