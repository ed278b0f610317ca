"""What a query may be, and how it becomes rows of terms and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.layout import MAX_QUERY_TERMS

if TYPE_CHECKING:
    from lexlip.models.lexlip import LexLIP

# A bag of words by term or by word, or (terms, weights), or a (V,) vector, or a text, or a PIL picture.
Query = Mapping[int, float] | Mapping[str, float] | tuple[Sequence[int], Sequence[float]] | np.ndarray | str | Any
_LIGHTEST, _HEAVIEST = 1e-30, 1e30  # products with impacts and sums over terms then stay far inside float64


@dataclass(frozen=True)
class Queries:
    """Queries in rows, as `lexlip.index.scoring.search` takes them.

    Attributes:
        offsets: (Q + 1,) int64; row i holds terms[offsets[i]:offsets[i + 1]].
        terms: (nnz,) uint32, ascending in each row, none twice.
        weights: (nnz,) float64, above 0.
    """

    offsets: np.ndarray
    terms: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def bag_of(query: Query, model: LexLIP | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A query's terms and weights.

    Args:
        query: see `Query`. A bag by words, a text and a picture need a model.
        model: its towers and its vocabulary.

    Returns:
        (T,) uint32 ascending and (T,) float64 above 0; weights of a term that comes twice are added up. T is at most
        MAX_QUERY_TERMS: of an encoded text or picture the heaviest terms are kept.

    Raises:
        IndexingError: no such query, negative weights or weights that are no numbers, a text without a model, a bag or
            a vector of more terms.
    """
    if isinstance(query, Mapping):
        terms, weights = _terms(list(query), model), list(query.values())
    elif isinstance(query, tuple) and len(query) == 2:
        terms, weights = query
    elif isinstance(query, str):
        return bag_of_encoded(_needed(model, "a text").encode_text([query])[0])
    elif hasattr(query, "convert"):  # a PIL picture, without importing PIL
        return bag_of_encoded(_needed(model, "a picture").encode_image([query])[0])
    else:
        terms, weights = _not_zero(query)
    return _limited(*_checked(np.asarray(terms), np.asarray(weights)))


def bag_of_encoded(vector: Any) -> tuple[np.ndarray, np.ndarray]:
    """Terms and weights of a model's vector: the heaviest MAX_QUERY_TERMS, of equal weights the lower term.

    Who writes a query can be told to keep it shorter; of a text or a picture nobody chose the terms.

    Args:
        vector: (V,), numpy or torch.

    Returns:
        As `bag_of`.

    Raises:
        IndexingError: negative weights or weights that are no numbers.
    """
    terms, weights = _checked(*_not_zero(vector))
    if len(terms) > MAX_QUERY_TERMS:
        heaviest = np.sort(np.argsort(-weights, kind="stable")[:MAX_QUERY_TERMS])
        terms, weights = terms[heaviest], weights[heaviest]
    return terms, weights


def pack(bags: Sequence[tuple[np.ndarray, np.ndarray]]) -> Queries:
    """Rows of what `bag_of` returned."""
    if len(bags) == 1:
        return Queries(np.array([0, len(bags[0][0])]), *bags[0])
    offsets = np.zeros(len(bags) + 1, np.int64)
    np.cumsum([len(terms) for terms, _ in bags], out=offsets[1:])
    terms = np.concatenate([terms for terms, _ in bags]) if bags else np.empty(0, np.uint32)
    weights = np.concatenate([weights for _, weights in bags]) if bags else np.empty(0)
    return Queries(offsets, terms, weights)


def _checked(terms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if terms.ndim != 1 or weights.ndim != 1 or len(terms) != len(weights):
        raise IndexingError(f"a query needs as many weights as terms, not terms {terms.shape}, weights {weights.shape}")
    if not len(terms):
        return np.empty(0, np.uint32), np.empty(0)
    if terms.dtype.kind not in "iu" or weights.dtype.kind not in "fiu":
        raise IndexingError(
            f"a query's terms are whole numbers and its weights numbers, not {terms.dtype} and {weights.dtype}"
        )
    weights = weights.astype(np.float64)
    good = (weights == 0) | ((weights >= _LIGHTEST) & (weights <= _HEAVIEST))
    if not good.all():
        place = int((~good).argmax())
        raise IndexingError(
            f"a query's term {terms[place]} weighs {weights[place]}; a weight is 0, or {_LIGHTEST} to {_HEAVIEST}"
        )
    used = (weights > 0) & (terms >= 0) & (terms < 2**32)
    terms, weights = terms[used].astype(np.uint32), weights[used]
    order = terms.argsort(kind="stable")
    terms, weights = terms[order], weights[order]
    if (terms[1:] == terms[:-1]).any():
        terms, place = np.unique(terms, return_inverse=True)
        weights = np.bincount(place, weights)
    return terms, weights


def _limited(terms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(terms) > MAX_QUERY_TERMS:
        raise IndexingError(
            f"a query of {len(terms):,} terms; at most {MAX_QUERY_TERMS:,} are taken: keep the heaviest"
        )
    return terms, weights


def _not_zero(vector: Any) -> tuple[np.ndarray, np.ndarray]:
    """Terms and weights of a (V,) vector, numpy or torch."""
    dense = np.asarray(vector.detach().float().cpu() if hasattr(vector, "detach") else vector)
    if dense.ndim != 1 or dense.dtype.kind not in "fiu":
        raise IndexingError(
            f"a query is a mapping of terms to weights, (terms, weights), a vector, a text or a picture, not "
            f"{type(vector).__name__}" + (f" of shape {dense.shape}" if dense.ndim else "")
        )
    terms = np.flatnonzero(dense)
    return terms, dense[terms]


def _terms(keys: list, model: LexLIP | None) -> list[int]:
    """Term numbers of a bag's keys, words looked up in the model's vocabulary."""
    words = [key for key in keys if isinstance(key, str)]
    if not words:
        return keys
    if len(words) < len(keys):
        raise IndexingError("a bag's keys are either all words or all numbers")
    tokenizer = _needed(model, "a bag of words").tokenizer
    if tokenizer is None:
        raise IndexingError("the model has no tokenizer to look words up in; use term numbers")
    vocabulary = tokenizer.get_vocab()
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise IndexingError(f"{unknown[0]!r} is no word of the model's vocabulary")
    return [vocabulary[word] for word in words]


def _needed(model: LexLIP | None, what: str) -> LexLIP:
    if model is None:
        raise IndexingError(f"{what} as query needs a model: Index.open(path, model=...)")
    return model
