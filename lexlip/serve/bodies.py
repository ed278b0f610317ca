"""From a request's bytes to a query, with every limit held before the bytes cost more than themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lexlip.serve import schemas
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import MAX_JSON, Limits

_CLOSE = {"Connection": "close"}  # what is left of the body is not read


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        kind: "text", "words", "terms" or "picture".
        query: a string, a mapping, or an encoded picture.
        fields: the others, checked.
    """

    kind: str
    query: Any
    fields: BaseModel


class Reader:
    """Reads requests of one route.

    Args:
        name: of the route, in the OpenAPI document.
        fields: besides the query, as `lexlip.serve.schemas` gives them.
        limits: of bodies.

    Attributes:
        described: the request's body for the OpenAPI document.
    """

    def __init__(self, name: str, fields: dict[str, Any], limits: Limits):
        self._models, self._form = schemas.request_models(name, fields), schemas.form_model(name, fields)
        self._limits = limits
        self.described = schemas.request_body(self._models, self._form)

    async def __call__(self, request: Request) -> Asked:
        """Read and check a request.

        Raises:
            Refusal: 400 no JSON or no form, 408 too slow, 413 too large, 415 another type, 422 fields that cannot be.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return self._json(await self._body(request, min(MAX_JSON, self._limits.max_body)))
        if kind == "multipart/form-data":
            return await self._picture(request, await self._body(request, self._limits.max_body))
        raise Refusal(
            415, "unsupported_media_type",
            f"content-type {kind or 'missing'}: send application/json, or multipart/form-data with a picture",
            headers=_CLOSE,
        )  # fmt: skip

    async def _body(self, request: Request, limit: int) -> bytes:
        too_large = Refusal(413, "body_too_large", f"a body of more than {limit:,} bytes", headers=_CLOSE)
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > limit:
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

    def _json(self, body: bytes) -> Asked:
        try:
            # The parser goes 200 levels deep, however deep the text is.
            value = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise Refusal(400, "invalid_json", f"the body is no JSON: {error}") from error
        kinds = [kind for kind in self._models if kind in value] if isinstance(value, dict) else []
        if len(kinds) != 1:
            names = ", ".join(self._models)
            raise Refusal(422, "invalid_request", f"the body must be an object with exactly one of {names}")
        fields = _checked(self._models[kinds[0]], value)
        return Asked(kinds[0], getattr(fields, kinds[0]), fields)

    async def _picture(self, request: Request, body: bytes) -> Asked:
        async def again() -> dict:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            form = await Request(request.scope, again).form(max_files=1, max_fields=8, max_part_size=4096)
        except HTTPException as error:
            raise Refusal(400, "invalid_form", f"the body is no form with one picture: {error.detail}") from error
        try:
            repeated = next((name for name in form if len(form.getlist(name)) > 1), None)
            if repeated is not None:
                raise Refusal(422, "invalid_request", f"{repeated} comes twice", (repeated,))
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Refusal(422, "invalid_request", "the form needs a picture as the file `image`", ("image",))
            fields = _checked(self._form, {name: value for name, value in form.items() if name != "image"})
            return Asked("picture", await image.read(), fields)
        finally:
            await form.close()


def _checked(model: type[BaseModel], value: dict) -> BaseModel:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(422, "invalid_request", f"{place}: {first['msg']}", first["loc"]) from error
