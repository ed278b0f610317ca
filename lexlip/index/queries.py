"""What a query may be, and how it becomes rows of terms and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lexlip.errors import EncodingError, IndexingError
from lexlip.index.layout import MAX_QUERY_TERMS
from lexlip.sparse import SparseRows, nonzero_terms, offsets_of
from lexlip_data.errors import DataError

if TYPE_CHECKING:
    from lexlip.index.lookup import TableModel
    from lexlip.models.retrieval import LexiconModel

Model: TypeAlias = "LexiconModel | TableModel"
# Weights by term or by the vocabulary's names of terms, or (terms, weights), or a (V,) vector, a text, a PIL image.
Query = Mapping[int, float] | Mapping[str, float] | tuple[Sequence[int], Sequence[float]] | np.ndarray | str | Any
Words = Mapping[int, float] | Mapping[str, float]
Bag = tuple[np.ndarray, np.ndarray]  # (T,) uint32 terms, ascending, and (T,) float64 weights above 0
AT_ONCE = 64  # texts, or images, of several queries that are encoded together; texts of one length, as far as can be
_LIGHTEST, _HEAVIEST = 1e-30, 1e30  # products with impacts and sums over terms then stay far inside float64
_NOT_ENCODED = (EncodingError, IndexingError, DataError, OSError)  # where a text or an image is at fault


def bag_of(query: Query, model: Model | None = None) -> Bag:
    """A query's terms and weights.

    Args:
        query: see `Query`. A bag by names, a text and an image need a model.
        model: its towers and its vocabulary.

    Returns:
        (T,) uint32 ascending and (T,) float64 above 0; weights of a term that comes twice are added up. T is at most
        MAX_QUERY_TERMS: of an encoded text or image the heaviest terms are kept.

    Raises:
        IndexingError: no such query, weights that are negative or not numbers, a text without a model, a bag or a
            vector of more terms.
    """
    encode = _encoder(query, model)
    return _bag_of_terms(query, model) if encode is None else bag_of_encoded(encode([query])[0])


def bags_of(queries: Sequence[Query], model: Model | None = None, names: Sequence[str] | None = None) -> list[Bag]:
    """`bag_of` each of several queries, in their order; texts and images are encoded in batches.

    Args:
        names: of the queries, for messages; None: queries[0] and so on.

    Raises:
        IndexingError: as `bag_of`, or a text or an image that cannot be encoded; names the query.
    """
    bags: dict[int, Bag] = {}
    encoded: dict[Callable[[list], Any], list[int]] = {}

    def wrong(number: int, error: Exception) -> IndexingError:
        return IndexingError(f"{names[number] if names is not None else f'queries[{number}]'}: {error}")

    for number, query in enumerate(queries):
        try:
            encode = _encoder(query, model)
            if encode is None:
                bags[number] = _bag_of_terms(query, model)
            else:
                encoded.setdefault(encode, []).append(number)
        except IndexingError as error:
            raise wrong(number, error) from error
    for encode, numbers in encoded.items():
        numbers.sort(key=lambda number: len(queries[number]) if isinstance(queries[number], str) else 0)
        for first in range(0, len(numbers), AT_ONCE):
            part = numbers[first : first + AT_ONCE]
            try:
                vectors = encode([queries[number] for number in part])
                vectors = vectors.cpu() if hasattr(vectors, "cpu") else vectors  # once, not row by row
                bags.update(zip(part, map(bag_of_encoded, vectors)))
            except _NOT_ENCODED:
                for number in part:  # which of them it is
                    try:
                        bag_of(queries[number], model)
                    except _NOT_ENCODED as error:
                        raise wrong(number, error) from error
                raise
    return [bags[number] for number in range(len(queries))]


def _encoder(query: Query, model: Model | None) -> Callable[[list], Any] | None:
    """What encodes a text or an image; None for what holds its terms itself."""
    if isinstance(query, str):
        return _needed(model, "a text").encode_text
    if hasattr(query, "convert"):  # a PIL image, without importing PIL
        encoder: Any = _needed(model, "an image")
        if not hasattr(encoder, "encode_image"):
            raise IndexingError("an image as query needs the whole model; this is the table of its text side alone")
        return encoder.encode_image
    return None


def _bag_of_terms(query: Query, model: Model | None) -> Bag:
    terms: Any
    weights: Any
    if isinstance(query, Mapping):
        terms, weights = _terms(list(query), model), list(query.values())
    elif isinstance(query, tuple) and len(query) == 2:
        terms, weights = query
    else:
        terms, weights = _not_zero(query)
    terms, weights = _checked(np.asarray(terms), np.asarray(weights))
    if len(terms) > MAX_QUERY_TERMS:
        raise IndexingError(
            f"a query of {len(terms):,} terms; at most {MAX_QUERY_TERMS:,} are taken: keep the heaviest"
        )
    return terms, weights


def terms_of_words(name: str, words: Words | None, model: Model | None) -> dict[int, float]:
    """Values by term of values by term or word.

    Raises:
        IndexingError: no such mapping; words that the model's vocabulary lacks, or without a model.
    """
    if words is None:
        return {}
    if not isinstance(words, Mapping):
        raise IndexingError(
            f"{name} maps terms or words to numbers, such as {{'dog': 0.1}}; not {type(words).__name__}"
        )
    terms = _terms(list(words), model)
    if not all(isinstance(term, (int, np.integer)) and not isinstance(term, bool) for term in terms):
        raise IndexingError(f"{name}: terms are words or whole numbers")
    return dict(zip(map(int, terms), words.values()))


def bag_of_encoded(vector: Any) -> Bag:
    """Terms and weights of a model's (V,) vector, numpy or torch: the heaviest MAX_QUERY_TERMS, first the lower terms.

    Whoever writes a query can be told to keep it shorter; of a text or an image nobody chose the terms.

    Returns:
        As `bag_of`.

    Raises:
        IndexingError: weights that are negative or not numbers.
    """
    rows = pack([_checked(*_not_zero(vector))]).top_k(MAX_QUERY_TERMS)
    return rows.terms, rows.weights


def pack(bags: Sequence[Bag]) -> SparseRows:
    """Rows of what `bag_of` returned, as `lexlip.index.scoring.search` takes them; their ids are their numbers."""
    if len(bags) == 1:  # a single search takes a tenth of a millisecond
        return SparseRows(np.zeros(1, np.int64), np.array([0, len(bags[0][0])]), *bags[0], "queries")
    terms = np.concatenate([np.empty(0, np.uint32), *(terms for terms, _ in bags)])
    weights = np.concatenate([np.empty(0), *(weights for _, weights in bags)])
    return SparseRows(np.arange(len(bags)), offsets_of([len(terms) for terms, _ in bags]), terms, weights, "queries")


def _checked(terms: np.ndarray, weights: np.ndarray) -> Bag:
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
        first = int((~good).argmax())
        raise IndexingError(
            f"a query's term {terms[first]} weighs {weights[first]}; a weight is 0, or {_LIGHTEST} to {_HEAVIEST}"
        )
    used = (weights > 0) & (terms >= 0) & (terms < 2**32)
    terms, weights = terms[used].astype(np.uint32), weights[used]
    order = terms.argsort(kind="stable")
    terms, weights = terms[order], weights[order]
    if (terms[1:] == terms[:-1]).any():
        terms, of_term = np.unique(terms, return_inverse=True)
        weights = np.bincount(of_term, weights)
    return terms, weights


def _not_zero(vector: Any) -> tuple[np.ndarray, np.ndarray]:
    """Terms and weights of a (V,) vector, numpy or torch."""
    if is_sparse(vector):
        shape = tuple(vector.shape)
        if len(shape) == 1:
            vector = vector.reshape((1, *shape)) if hasattr(vector, "tocsr") else vector.unsqueeze(0)
        if vector.shape[0] == 1:  # scipy and CSR know no other rows
            _, terms, weights = nonzero_terms(vector)
            return terms, weights
        raise IndexingError(f"a query is one row, not a sparse table of shape {shape}")
    try:
        dense = np.asarray(vector.detach().float().cpu() if hasattr(vector, "detach") else vector)
    except (TypeError, ValueError) as error:
        raise IndexingError(f"a query is no {type(vector).__name__} such as this: {error}") from error
    if dense.ndim != 1 or dense.dtype.kind not in "fiu":
        raise IndexingError(
            f"a query is a mapping of terms to weights, (terms, weights), a vector, a text or an image, not "
            f"{type(vector).__name__}" + (f" of shape {dense.shape}" if dense.ndim else "")
        )
    terms = np.flatnonzero(dense)
    return terms, dense[terms]


def is_sparse(vectors: Any) -> bool:
    """Whether a torch tensor or a scipy matrix is a sparse one."""
    return hasattr(vectors, "tocsr") or str(getattr(vectors, "layout", "torch.strided")) != "torch.strided"


def each_query(queries: Any) -> Sequence[Query]:
    """The queries of a batch, one by one.

    Raises:
        IndexingError: a single query instead of several.
    """
    if type(queries) is list:
        return queries
    if isinstance(queries, (str, bytes, Mapping)) or hasattr(queries, "convert"):
        raise IndexingError(f"queries come in a list, such as [query]; {type(queries).__name__} is one of them")
    if is_sparse(queries):
        offsets, terms, weights = nonzero_terms(queries)
        return [
            (terms[first:last], weights[first:last]) for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist())
        ]
    if getattr(queries, "ndim", 2) != 2:
        raise IndexingError(f"queries have the shape {tuple(queries.shape)}; they must be (Q, V)")
    try:
        return list(queries)
    except TypeError as error:
        raise IndexingError(f"queries come in a list, not as {type(queries).__name__}") from error


def _terms(keys: list, model: Model | None) -> list[int]:
    """Term numbers of a bag's keys, names looked up in the model's vocabulary."""
    names = [key for key in keys if isinstance(key, str)]
    if not names:
        return keys
    if len(names) < len(keys):
        raise IndexingError("a bag's keys are either all words or all numbers")
    tokenizer = _needed(model, "a bag of words").tokenizer
    if tokenizer is None:
        raise IndexingError("the model has no tokenizer to look words up in; use term numbers")
    vocabulary = tokenizer.get_vocab()
    unknown = [name for name in names if name not in vocabulary]
    if unknown:
        raise IndexingError(f"{unknown[0]!r} is no word of the model's vocabulary")
    return [vocabulary[name] for name in names]


def _needed(model: Model | None, what: str) -> Model:
    if model is None:
        raise IndexingError(f"{what} as query needs a model: Index.open(path, model=...)")
    return model
