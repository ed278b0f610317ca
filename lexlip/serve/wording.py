"""What is wrong with a field, in words of the API: pydantic's own name types of Python."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

_WORDS = {  # pydantic's kind of error -> what the field must be; {} from the error's context
    "missing": "is missing",
    "extra_forbidden": "is no field of this request",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be a term's number, such as 3899",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "dict_type": "must be an object",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
}
_PYTHON = re.compile(r"\b[A-Z]\w*(Error|Warning|Exception): ")


def worded(error: ValidationError) -> tuple[str, tuple[str | int, ...]]:
    """The first mistake in a sentence, and the field that it is in, outermost first."""
    first = error.errors(include_url=False)[0]
    where = tuple(part for part in first["loc"] if part != "[key]")
    if where[:1] == ("id",):  # one error for each of its two types
        where, first = ("id",), error.errors(include_url=False)[-1]
        if not isinstance(first["input"], str):
            return "id must be a string or a whole number", where
    return f"{_path(where)} {_reason(first)}", where


def _reason(first: Any) -> str:
    words = _WORDS.get(first["type"])
    return words.format(**first.get("ctx", {})) if words else "is not valid"


def _path(where: tuple[str | int, ...]) -> str:
    path = ".".join(map(str, where))
    return path if len(path) <= 100 else path[:97] + "..."


def without_python(message: str) -> str:
    """A decoder's message without the names of the exceptions in it."""
    return _PYTHON.sub("", message)
