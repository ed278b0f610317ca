"""The form of requests and answers: pydantic checks them, and the OpenAPI document describes the same classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from lexlip.index.layout import MAX_QUERY_TERMS
from lexlip.index.queries import Bag
from lexlip.serve.vocabulary import WordsOfTerms

MAX_TEXT = 10_000  # characters; a model reads far fewer words
_TERM = "^(0|[1-9][0-9]{0,9})$"
_Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
_Word = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_Term = Annotated[str, StringConstraints(pattern=_TERM)]
# To JSON Schema 1.0 is a whole number too. This comes after what bounds a number, or the document loses the bounds.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
_Id = Annotated[int, _WHOLE] | Annotated[str, StringConstraints(max_length=4096)]


def _allow_terms_only(schema: dict) -> None:
    """pydantic describes patterned names by patternProperties alone, which allows any other name as well."""
    weight = schema.pop("patternProperties")[_TERM]
    schema.update(propertyNames={"pattern": _TERM}, additionalProperties=weight)


_Words = dict[_Word, Annotated[float, Field(ge=0, le=1e6)]]

QUERIES: dict[str, Any] = {
    "text": Annotated[str, Field(
        min_length=1, max_length=MAX_TEXT,
        description="what to look for; the model reads its first words, as many as it was trained for",
    )],
    "query": Annotated[str, Field(
        min_length=1, max_length=MAX_TEXT, examples=["a dog on the beach -cat"],
        description="as written into a search box: text with -word, +word and word^2 (docs/SEARCH.md#words-in-a-query)",
    )],
    "words": Annotated[dict[_Word, _Weight], Field(
        min_length=1, max_length=MAX_QUERY_TERMS, examples=[{"dog": 0.7, "beach": 0.4}],
        description="words of the model's vocabulary and their weights; others are ignored, and named",
    )],
    "terms": Annotated[dict[_Term, _Weight], Field(
        min_length=1, max_length=MAX_QUERY_TERMS, examples=[{"3899": 0.7, "3509": 0.4}],
        json_schema_extra=_allow_terms_only, description="terms of the vocabulary by number and their weights",
    )],
}  # fmt: skip

FORM_NUMBERS = {"k", "drop", "hit_words"}
JSON_ONLY = {"without", "required", "penalties", "patches"}  # a form holds no objects and lists
MAX_CONDITIONS = 100
_PER_HIT = "so many of each hit's heaviest words, and the query's own; 0: none"
_CONDITIONS = {
    "without": "words, and a weight that no hit's own weight for them is above",
    "required": "words, and a weight that every hit's own weight for them is above",
    "penalties": "words, and what is taken off a score for each unit of a hit's weight for them",
}
EXPLAIN_FIELDS: dict[str, Any] = {
    "id": (_Id, Field(description="of the document")),
    "patches": (
        Annotated[list[_Word], Field(max_length=64)],
        Field([], description="words whose places on the document's photo are wanted"),
    ),
}


def search_fields(max_k: int) -> dict[str, Any]:
    """Fields of a search besides the query."""
    drop = "0 finds exactly the best; above, docs/INDEX.md says what is left out"
    conditions: dict[str, Any] = {
        name: (Annotated[_Words, Field(max_length=MAX_CONDITIONS)], Field({}, description=text))
        for name, text in _CONDITIONS.items()
    }
    return {
        "k": (Annotated[int, Field(ge=1, le=max_k), _WHOLE], Field(10, description="how many to find")),
        "drop": (Annotated[float, Field(ge=0, lt=1)], Field(0.0, description=drop)),
        "hit_words": (Annotated[int, Field(ge=0, le=64), _WHOLE], Field(0, description=_PER_HIT)),
        **conditions,
    }


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


def request_models(route: str, fields: dict[str, Any]) -> dict[str, type[BaseModel]]:
    """The class of a route's requests for each kind of query: those of QUERIES, and "image" for forms.

    A form has only `fields` besides its file, without those of JSON_ONLY; those of FORM_NUMBERS are read as JSON before
    they come here.
    """
    create: Any = create_model  # its stub knows no fields out of a dict
    models = {
        kind: create(f"{route}By{kind.capitalize()}", __base__=_Request, **{kind: (type, ...)}, **fields)
        for kind, type in QUERIES.items()
    }
    plain = {name: field for name, field in fields.items() if name not in JSON_ONLY}
    form = create(f"{route}Form", __base__=_Request, **plain)
    return {**models, "image": form}


def request_body(models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    """The OpenAPI description of a route's requests."""
    *queries, form = (model.model_json_schema() for model in models.values())
    image = {"type": "string", "contentMediaType": "image/*", "format": "binary", "description": "an encoded image"}
    form["properties"] = {"image": image, **form["properties"]}
    form["required"] = ["image", *form.get("required", [])]
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": queries}},
            "multipart/form-data": {"schema": form, "encoding": {"image": {"contentType": "image/*"}}},
        },
    }


class WordAnswer(BaseModel):
    """A word and its weight."""

    word: str
    weight: float


class HitAnswer(BaseModel):
    """A document that matches the query."""

    id: int | str
    score: float
    words: list[WordAnswer] = Field(default=[], description="its heaviest words as stored, if hit_words asked for them")


class QueryAnswer(BaseModel):
    """A query in words, as `words` and the fields beside it take them."""

    words: list[WordAnswer]
    without: dict[str, float]
    required: dict[str, float]
    penalties: dict[str, float]


class SearchAnswer(BaseModel):
    """The best documents, best first, and the state of the index that they come from."""

    generation: int
    hits: list[HitAnswer]
    unknown_words: list[str] = Field(default=[], description="words of the request that the vocabulary lacks")
    query: QueryAnswer | None = Field(default=None, description="if hit_words asked for words")


class ShareAnswer(BaseModel):
    """A shared term: score = query * document."""

    term: int
    word: str | None
    query: float
    document: float
    score: float


class PatchesAnswer(BaseModel):
    """Where on a photo words are seen: a grid over a part of it.

    A map holds a row of weights for each row of the grid: of patches where `pooling` is "max", whose largest is the
    photo's own; of shares where it is "mean" (docs/MODELS.md).
    """

    left: float = Field(description="of the grid, in fractions of the photo's width; right too")
    top: float = Field(description="of the grid, in fractions of the photo's height; bottom too")
    right: float
    bottom: float
    pooling: str
    maps: dict[str, list[list[float]]]


class ExplainAnswer(BaseModel):
    """What each shared term adds to a document's score, largest first."""

    generation: int
    id: int | str
    score: float
    terms: list[ShareAnswer]
    unknown_words: list[str] = []
    patches: PatchesAnswer | None = Field(default=None, description="if words were given as `patches`")


class SuggestionAnswer(BaseModel):
    """A word, and how many documents have it."""

    word: str
    documents: int


class SuggestionsAnswer(BaseModel):
    """Words of the vocabulary that begin as asked, commonest first."""

    generation: int
    words: list[SuggestionAnswer]


class AboutAnswer(BaseModel):
    """What the service has to show."""

    generation: int
    documents: int
    max_k: int
    photos: bool = Field(description="whether it knows where the photos lie")
    patches: str | None = Field(description='"max" or "mean" where the model says what patches say, else null')


class HealthAnswer(BaseModel):
    """The service answers, and from which state of the index."""

    status: str = "ok"
    generation: int
    documents: int


def word_answers(pairs: list[tuple[str, float]]) -> list[WordAnswer]:
    """Words and weights as answers hold them."""
    return [WordAnswer(word=word, weight=weight) for word, weight in pairs]


def query_answer(bag: Bag, conditions: dict[str, dict[int, float]], vocabulary: WordsOfTerms) -> QueryAnswer:
    """A query by its words, heaviest first; terms that the vocabulary lacks are left out."""
    named = {
        name: {vocabulary.words[term]: value for term, value in terms.items()} for name, terms in conditions.items()
    }
    words = sorted(vocabulary.named(bag), key=lambda pair: -pair[1])
    return QueryAnswer(words=word_answers(words), **{**dict.fromkeys(_CONDITIONS, {}), **named})
