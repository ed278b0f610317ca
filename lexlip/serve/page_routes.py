"""The page and what it asks for besides searches: its files, photos, thumbnails, videos, suggestions."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response

from lexlip.index.places import Searchable
from lexlip.serve import schemas
from lexlip.serve.admission import VIDEO, WORDS
from lexlip.serve.current import CurrentIndex, id_of
from lexlip.serve.errors import Refusal, described
from lexlip.serve.headers import PAGE_POLICY
from lexlip.serve.limits import Limits
from lexlip.serve.photos import IMAGE_SIDE, PhotoFile, Photos
from lexlip.serve.searcher import Searcher
from lexlip.serve.videos import VideoResponse

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
LIMITED = {"/thumbnail/", "/image/", VIDEO, WORDS}
# Few sizes: any number would fill the cache with copies.
_Side = Annotated[Literal["160", "320", "640"], Query(description="pixels of the shorter side at most")]
_FOUND: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has it already"},
}
_PLAYED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/*": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The bytes that Range asks for"},
    400: {"description": "Range has another form"},
    416: {"description": "The file has no such bytes"},
}


def add_page(app: FastAPI, current: CurrentIndex, searcher: Searcher, photos: Photos, limits: Limits) -> set[str]:
    """Add the routes; gives their paths, those that go on ending in a slash."""
    contents = _page_files()

    def file_of(index: Searchable, id: int | str) -> PhotoFile:
        if not index.holds(id):
            raise Refusal(404, "no_document", "no document has this id", ("id",))
        return photos.file(id)

    async def photo(request: Request, text: str, side: int) -> Response:
        index = current.index
        file = await asyncio.to_thread(file_of, index, id_of(index, text))
        headers = {"ETag": f'"{file.stamp}-{side}"', "Cache-Control": "private, max-age=60"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(await photos.jpeg(file, side), media_type="image/jpeg", headers=headers)

    answers = {**_FOUND, **described(404, 421, 422, 500, 503)}

    @app.get("/thumbnail/{id:path}", summary="A document's photo, small", response_class=Response, responses=answers)
    async def thumbnail(request: Request, id: str, side: _Side = "320") -> Response:
        return await photo(request, id, int(side))

    @app.get("/image/{id:path}", summary="A document's photo, large", response_class=Response, responses=answers)
    async def image(request: Request, id: str) -> Response:
        return await photo(request, id, IMAGE_SIDE)

    @app.get(
        VIDEO + "{id:path}", summary="A document's video: its file", response_class=Response,
        responses={**_PLAYED, **described(404, 421, 422, 500, 503)},
    )  # fmt: skip
    async def video(id: str) -> Response:
        index = current.index
        file = await asyncio.to_thread(file_of, index, id_of(index, id))
        try:
            return await asyncio.to_thread(VideoResponse, file.path)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                told = "too many files are open; try again"
                raise Refusal(503, "busy", told, headers={"Retry-After": "1"}) from error
            raise Refusal(404, "no_video", "this document is no video, or not any more", ("id",)) from error

    @app.get(WORDS, summary="Words of the vocabulary that begin so", responses=described(421, 422, 500, 503))
    async def words(
        prefix: Annotated[str, Query(max_length=100)] = "", limit: Annotated[int, Query(ge=1, le=50)] = 10
    ) -> schemas.SuggestionsAnswer:
        index = current.index
        found = await searcher.suggest(index, prefix, limit)
        answers = [schemas.SuggestionAnswer(**each._asdict()) for each in found]
        return schemas.SuggestionsAnswer(generation=index.manifest.generation, words=answers)

    @app.get("/about", summary="What there is to show", responses=described(421, 500))
    async def about() -> schemas.AboutAnswer:
        index, known = current.index, bool(photos.roots.sources)
        return schemas.AboutAnswer(
            generation=index.manifest.generation, documents=len(index), max_k=limits.max_k,
            photos=known, patches=searcher.patch_pooling if known else None,
        )  # fmt: skip

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def start(request: Request) -> Response:
        return _answer(request, contents, "index.html")

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return _answer(request, contents, name)

    return {"/", "/page/", "/about", *LIMITED}


def _page_files() -> dict[str, tuple[bytes, str, str]]:
    """Name to content, type and tag, read once: nothing of the disk is looked up for a request."""
    found = {}
    for entry in files("lexlip.serve").joinpath("page").iterdir():
        kind = _KINDS.get("." + entry.name.rpartition(".")[2])
        if kind:
            data = entry.read_bytes()
            found[entry.name] = data, f"{kind}; charset=utf-8", f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"'
    return found


def _answer(request: Request, contents: dict[str, tuple[bytes, str, str]], name: str) -> Response:
    if name not in contents:
        raise Refusal(404, "not_found", "the page has no such file")
    data, kind, tag = contents[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
