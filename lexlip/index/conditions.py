"""What results must and must not have, and penalties: exact, whatever else a query says.

A condition on words or ids becomes a bitmap of a segment's documents that are left out, beside those that are deleted;
so the search itself finds the best of the others. Costs reading the lists of the words that are named, and looking at
every id where ids are chosen.

A penalty makes scores lower. The best without it are searched for, more and more of them, until all others would stay
below the last result even without a penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.queries import Model, Words, terms_of_words
from lexlip.index.segment import Segment

_Levels = Mapping[int, float]


@dataclass(frozen=True)
class Conditions:
    """What a search's results fulfil.

    Attributes:
        without: no result has a weight for the term above this.
        required: every result has a weight for the term above this.
        penalties: times a result's weight for the term, taken off its score.
        ids: whether a document of this id may be a result; None: any.
    """

    without: _Levels = field(default_factory=dict)
    required: _Levels = field(default_factory=dict)
    penalties: _Levels = field(default_factory=dict)
    ids: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("without", "required", "penalties"):
            for term, value in getattr(self, name).items():
                number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
                if not number or not 0 <= value <= 1e30:
                    raise IndexingError(f"{name}: {value!r} for term {term}; it must be a number of 0 or more")

    @classmethod
    def of_words(cls, model: Model | None, ids: Callable[[Any], bool] | None, **words: Words | None) -> Conditions:
        """By term or word: `without`, `required` and `penalties`; raises as `terms_of_words`."""
        return cls(**{name: terms_of_words(name, values, model) for name, values in words.items()}, ids=ids)

    def __bool__(self) -> bool:
        """Whether documents are left out."""
        return bool(self.without or self.required or self.ids is not None)

    def left_out(self, segment: Segment) -> np.ndarray:
        """The segment's documents that are deleted or do not fulfil this: a uint8 bitmap, lowest bit first."""
        if not self:
            return segment.deleted
        out = ~segment.alive()
        for term, level in self.without.items():
            documents, weights = segment.postings_of(term)
            out[documents[weights > level]] = True
        for term, level in self.required.items():
            documents, weights = segment.postings_of(term)
            has = np.zeros(segment.documents, bool)
            has[documents[weights > level]] = True
            out |= ~has
        if self.ids is not None:
            ids = segment.all_ids().tolist()
            chosen = self.ids
            out |= ~np.fromiter(map(bool, map(chosen, ids)), bool, len(ids))
        return np.packbits(out, bitorder="little")

    def penalty(self, segment: Segment, documents: np.ndarray) -> np.ndarray:
        """(N,) what is taken off the scores of some documents, terms in ascending order."""
        total = np.zeros(len(documents))
        for term, factor in sorted(self.penalties.items()):
            having, weights = segment.postings_of(term)
            places = np.searchsorted(having, documents)
            found = places < len(having)
            found[found] = having[places[found]] == documents[found]
            total[found] += factor * weights[places[found]]
        return total


ANY = Conditions()
