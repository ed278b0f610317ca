"""From a request's bytes to a query, with every limit enforced before the bytes cost more than themselves."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import anyio
from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lexlip.serve import schemas
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import MAX_JSON, Limits
from lexlip.serve.wording import worded

Content = tuple[str, Any, dict[str, Any]]  # kind of query, the query, the other fields
_CLOSE = {"Connection": "close"}  # the rest of the body is not read
_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252"}  # of forms
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's
_PART = 64 << 10  # bytes of a form that are taken apart at once; meanwhile nothing else is answered


class BodyReader:
    """Reads the bodies of one route's requests.

    Args:
        route: its name in the OpenAPI document.
        fields: besides the query, as in `lexlip.serve.schemas`.
        limits: of bodies.

    Attributes:
        openapi: the request's body in the OpenAPI document.
    """

    def __init__(self, route: str, fields: dict[str, Any], limits: Limits):
        self._models, self._limits = schemas.request_models(route, fields), limits
        self.openapi = schemas.request_body(self._models)

    async def __call__(self, request: Request) -> Content:
        """Read and check a request.

        Returns:
            Kind of query: "text", "words", "terms" or "image"; the query: a string, a mapping, or an encoded image; and
            the request's other fields.

        Raises:
            Refusal: 400 neither JSON nor a form, 408 too slow, 413 too large, 415 another type, 422 invalid fields.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            return self._json(await self._body(request, min(MAX_JSON, self._limits.max_body)))
        if media_type == "multipart/form-data":
            return await self._form(request, await self._body(request, self._limits.max_body))
        raise Refusal(
            415, "unsupported_media_type",
            f"content-type {media_type or 'missing'}: send application/json, or multipart/form-data with an image",
            headers=_CLOSE,
        )  # fmt: skip

    async def _body(self, request: Request, limit: int) -> bytes:
        too_large = Refusal(413, "body_too_large", f"a body of more than {limit:,} bytes", headers=_CLOSE)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        body = bytearray()
        try:
            with anyio.fail_after(self._limits.body_seconds):
                async for part in request.stream():
                    if len(body) + len(part) > limit:
                        raise too_large
                    body += part
        except TimeoutError as error:
            seconds = f"{self._limits.body_seconds:g} seconds"
            raise Refusal(408, "too_slow", f"the body took more than {seconds}", headers=_CLOSE) from error
        except ClientDisconnect as error:
            raise Refusal(400, "disconnected", "the client went away") from error
        return bytes(body)

    def _json(self, body: bytes) -> Content:
        try:
            # The parser goes 200 levels deep, however deep the text is.
            value = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise Refusal(400, "invalid_json", f"the body is no JSON: {error}") from error
        kinds = [kind for kind in schemas.QUERIES if kind in value] if isinstance(value, dict) else []
        if len(kinds) != 1:
            names = ", ".join(schemas.QUERIES)
            raise Refusal(422, "invalid_request", f"the body must be an object with exactly one of {names}")
        fields = self._checked(kinds[0], value)
        return kinds[0], fields.pop(kinds[0]), fields

    async def _form(self, request: Request, body: bytes) -> Content:
        charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
        if charset.lower() not in _CHARSETS:
            raise Refusal(400, "invalid_form", f"charset {charset[:40]!r}: forms are read as UTF-8")
        parts = iter(range(0, len(body), _PART))

        async def receive() -> dict:
            await anyio.sleep(0)  # others first
            at = next(parts, len(body))
            return {"type": "http.request", "body": body[at : at + _PART], "more_body": at + _PART < len(body)}

        try:
            parsing = Request(request.scope, receive).form(max_files=1, max_fields=8, max_part_size=4096)
            async with parsing as form:
                repeated = next((name for name in form if len(form.getlist(name)) > 1), None)
                if repeated is not None:
                    raise Refusal(422, "invalid_request", f"{repeated} comes twice", (repeated,))
                image = form.get("image")
                if not isinstance(image, UploadFile):
                    raise Refusal(422, "invalid_request", "the form needs an image as the file `image`", ("image",))
                fields = {name: _number(name, value) for name, value in form.items() if name != "image"}
                return "image", await image.read(), self._checked("image", fields)
        except HTTPException as error:
            raise Refusal(400, "invalid_form", f"the body is no form with one image: {error.detail}") from error
        except ValueError as error:  # the parser's, of names and values in no encoding
            raise Refusal(400, "invalid_form", "the body is no form with one image") from error

    def _checked(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._models[kind].model_validate(value))
        except ValidationError as error:
            raise Refusal(422, "invalid_request", *worded(error)) from error


def _number(name: str, value: Any) -> Any:
    """A form's number as JSON would read it; what is none stays, for the check of the fields to refuse."""
    if name in schemas.FORM_NUMBERS and isinstance(value, str) and _NUMBER.fullmatch(value):
        with suppress(ValueError):
            return from_json(value, allow_inf_nan=False)
    return value
