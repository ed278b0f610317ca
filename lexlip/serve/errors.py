"""Errors as JSON: {"error": {"code": ..., "message": ..., "where": [...]}}, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from lexlip.errors import DamagedIndex, EngineError, IndexingError
from lexlip_data.errors import one_line

_log = logging.getLogger("uvicorn.error")


_REASONS = {
    400: "Neither JSON nor a form",
    404: "No document has this id, or it has no photo",
    408: "The body arrived too slowly",
    413: "The body is too large",
    415: "Another content type",
    421: "Another host is meant",
    422: "Invalid fields, query or image",
    500: "A mistake of the service, or a damaged index",
    503: "Too many requests at once, or the engine that holds the documents does not answer",
}


class Problem(BaseModel):
    """What is wrong with a request."""

    code: str = Field(description="for programs; docs/SERVING.md lists them")
    message: str = Field(description="for people")
    where: list[str | int] = Field(default=[], description="the field, outermost first")


class ErrorAnswer(BaseModel):
    """The body of every answer that reports an error."""

    error: Problem


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not served, with the status and the headers of its answer; the rest is a `Problem`."""

    status: int
    code: str
    message: str
    where: tuple = ()
    headers: Mapping[str, str] | None = None

    def answer(self) -> JSONResponse:
        """The response that the client gets."""
        problem = Problem(code=self.code, message=one_line(self.message), where=list(self.where))
        return JSONResponse(ErrorAnswer(error=problem).model_dump(), self.status, self.headers)


def add_handlers(app: FastAPI) -> None:
    """Answer every error that leaves a route in this one form."""
    for kind in (Refusal, IndexingError, EngineError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return _refusal_of(error).answer()


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DamagedIndex):  # an IndexingError, but not the client's mistake
        _log.error("%s", error)
        return Refusal(500, "damaged_index", "the index is damaged; the service's log says where")
    if isinstance(error, EngineError):  # its address and its words are the log's business
        _log.error("%s", error)
        return Refusal(
            503, "engine", "the engine that holds the documents does not answer as it should; the service's log says "
            "more", headers={"Retry-After": "5"},
        )  # fmt: skip
    if isinstance(error, IndexingError):
        return Refusal(422, "invalid_query", str(error))
    if isinstance(error, RequestValidationError):  # of an address's own parameters
        name = str(error.errors()[0]["loc"][-1])
        return Refusal(422, "invalid_request", f"{name} is not valid", (name,))
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return Refusal(error.status_code, code, str(error.detail), headers=error.headers)
    # A mistake of the service: the server logs its trace.
    return Refusal(500, "internal_error", "a mistake in the service; its log says more")


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that report errors, for the OpenAPI document."""
    return {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in statuses}
