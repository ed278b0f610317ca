"""What requests and answers look like: checked by pydantic, and told by the OpenAPI document from the same classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from lexlip.index.layout import MAX_QUERY_TERMS

MAX_TEXT = 10_000  # characters; a model reads far fewer words
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_TERM = "^(0|[1-9][0-9]{0,9})$"
_WEIGHT = {"type": "number", "minimum": 1e-6, "maximum": 1e6}
# pydantic tells a pattern of keys by patternProperties alone, which would allow any other key besides.
_TERMS = {"propertyNames": {"pattern": _TERM}, "additionalProperties": _WEIGHT, "patternProperties": None}
# To JSON Schema 1.0 is a whole number too. This comes after what bounds a number, or the document loses the bounds.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Id = Annotated[int, _WHOLE] | Annotated[str, StringConstraints(max_length=4096)]

QUERIES: dict[str, Any] = {
    "text": (
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)],
        Field(description="what to look for; the model reads its first words, as many as it was trained for"),
    ),
    "words": (
        dict[Word, Weight],
        Field(
            min_length=1, max_length=MAX_QUERY_TERMS, examples=[{"dog": 0.7, "beach": 0.4}],
            description="words of the model's vocabulary and their weights; others are passed over, and named",
        ),
    ),
    "terms": (
        dict[Annotated[str, StringConstraints(pattern=_TERM)], Weight],
        Field(
            min_length=1, max_length=MAX_QUERY_TERMS, examples=[{"3899": 0.7, "3509": 0.4}],
            json_schema_extra=lambda schema: _closed(schema), description="numbers of words and their weights",
        ),
    ),
}  # fmt: skip


class Request(BaseModel):
    """A query and what is wanted of it. One of text, words, terms, or as a form with a picture."""

    model_config = ConfigDict(strict=True, extra="forbid")


class HitAnswer(BaseModel):
    """A document that was found."""

    id: int | str
    score: float


class SearchAnswer(BaseModel):
    """The best documents, best first, and the state of the index that they were found in."""

    generation: int
    hits: list[HitAnswer]
    unknown_words: list[str] = Field(default=[], description="words of the request that the vocabulary has not")


class ShareAnswer(BaseModel):
    """A shared term: score = query * document."""

    term: int
    word: str | None
    query: float
    document: float
    score: float


class ExplainAnswer(BaseModel):
    """What each shared term adds to a document's score, most first."""

    generation: int
    id: int | str
    score: float
    terms: list[ShareAnswer]
    unknown_words: list[str] = []


class HealthAnswer(BaseModel):
    """The service answers, and from which state of the index."""

    status: str = "ok"
    generation: int
    documents: int


def search_fields(max_k: int) -> dict[str, Any]:
    """Fields of a search besides the query."""
    return {
        "k": (Annotated[int, Field(ge=1, le=max_k), _WHOLE], Field(10, description="how many to find")),
        "drop": (
            Annotated[float, Field(ge=0, lt=1)],
            Field(0.0, description="0 finds exactly the best; above, docs/INDEX.md says what is left out"),
        ),
    }  # fmt: skip


def explain_fields() -> dict[str, Any]:
    """Fields of an explanation besides the query."""
    return {"id": (Id, Field(description="of the document"))}


def request_models(name: str, fields: dict[str, Any]) -> dict[str, type[Request]]:
    """By the field that holds the query, the class of such requests."""
    return {
        query: create_model(f"{name}By{query.capitalize()}", __base__=Request, **{query: definition}, **fields)
        for query, definition in QUERIES.items()
    }


def form_model(name: str, fields: dict[str, Any]) -> type[Request]:
    """The class of a form's fields besides the picture; forms hold strings, so it is not strict."""
    return create_model(f"{name}Form", __base__=Request, __cls_kwargs__={"strict": False}, **fields)


def request_body(models: dict[str, type[Request]], form: type[Request]) -> dict:
    """The OpenAPI description of both."""
    picture = {"type": "string", "contentMediaType": "image/*", "format": "binary", "description": "an encoded picture"}
    fields = form.model_json_schema()
    fields["properties"] = {"image": picture, **fields["properties"]}
    fields["required"] = ["image", *fields.get("required", [])]
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": [model.model_json_schema() for model in models.values()]}},
            "multipart/form-data": {"schema": fields, "encoding": {"image": {"contentType": "image/*"}}},
        },
    }


def _closed(schema: dict) -> None:
    schema.update({name: value for name, value in _TERMS.items() if value is not None})
    schema.pop("patternProperties", None)
