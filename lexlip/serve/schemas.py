"""The form of requests and answers: pydantic checks them, and the OpenAPI document describes the same classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from lexlip.index.layout import MAX_QUERY_TERMS

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


QUERIES: dict[str, Any] = {
    "text": Annotated[str, Field(
        min_length=1, max_length=MAX_TEXT,
        description="what to look for; the model reads its first words, as many as it was trained for",
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

FORM_NUMBERS = {"k", "drop"}
EXPLAIN_FIELDS: dict[str, Any] = {"id": (_Id, Field(description="of the document"))}


def search_fields(max_k: int) -> dict[str, Any]:
    """Fields of a search besides the query."""
    drop = "0 finds exactly the best; above, docs/INDEX.md says what is left out"
    return {
        "k": (Annotated[int, Field(ge=1, le=max_k), _WHOLE], Field(10, description="how many to find")),
        "drop": (Annotated[float, Field(ge=0, lt=1)], Field(0.0, description=drop)),
    }


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


def request_models(route: str, fields: dict[str, Any]) -> dict[str, type[BaseModel]]:
    """The class of a route's requests for each kind of query: those of QUERIES, and "image" for forms.

    A form has only `fields` besides its file; those of FORM_NUMBERS are read as JSON before they come here.
    """
    create: Any = create_model  # its stub knows no fields out of a dict
    models = {
        kind: create(f"{route}By{kind.capitalize()}", __base__=_Request, **{kind: (type, ...)}, **fields)
        for kind, type in QUERIES.items()
    }
    form = create(f"{route}Form", __base__=_Request, **fields)
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


class HitAnswer(BaseModel):
    """A document that matches the query."""

    id: int | str
    score: float


class SearchAnswer(BaseModel):
    """The best documents, best first, and the state of the index that they come from."""

    generation: int
    hits: list[HitAnswer]
    unknown_words: list[str] = Field(default=[], description="words of the request that the vocabulary lacks")


class ShareAnswer(BaseModel):
    """A shared term: score = query * document."""

    term: int
    word: str | None
    query: float
    document: float
    score: float


class ExplainAnswer(BaseModel):
    """What each shared term adds to a document's score, largest first."""

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
