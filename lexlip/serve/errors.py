"""Errors as JSON: {"error": {"code": ..., "message": ..., "where": [...]}}, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from lexlip.errors import DamagedIndex, IndexingError
from lexlip_data.errors import one_line

_log = logging.getLogger("uvicorn.error")


class Problem(BaseModel):
    """What is wrong with a request."""

    code: str = Field(description="for programs; docs/SERVING.md lists them")
    message: str = Field(description="for people")
    where: list[str | int] = Field(default=[], description="the field, outermost first")


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        code, message, where: see `Problem`.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, where: tuple = (), headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.where, self.headers = status, code, where, headers

    def answer(self) -> JSONResponse:
        """As the client gets it."""
        problem = Problem(code=self.code, message=one_line(self), where=list(self.where))
        return JSONResponse(ErrorAnswer(error=problem).model_dump(), self.status, self.headers)


def add_handlers(app: FastAPI) -> None:
    """Every error that leaves a route, in one form."""

    @app.exception_handler(Refusal)
    async def refusal(_: Request, error: Refusal) -> JSONResponse:
        return error.answer()

    @app.exception_handler(IndexingError)
    async def query(_: Request, error: IndexingError) -> JSONResponse:
        return Refusal(422, "invalid_query", str(error)).answer()

    @app.exception_handler(DamagedIndex)
    async def damaged(_: Request, error: DamagedIndex) -> JSONResponse:  # not the client's mistake
        _log.error("%s", error)
        return Refusal(500, "damaged_index", "the index is damaged; the service's log says where").answer()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return Refusal(error.status_code, code, str(error.detail), headers=error.headers).answer()

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:  # the server logs it, with its trace
        return Refusal(500, "internal_error", f"{type(error).__name__} in the service; its log says more").answer()
