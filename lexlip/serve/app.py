"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import lexlip
from lexlip.index import DamagedIndex, IndexingError
from lexlip.index.origin import require_model
from lexlip.index.places import Where, place_at
from lexlip.models.retrieval import LexiconModel
from lexlip.serve import schemas
from lexlip.serve.admission import Admission
from lexlip.serve.bodies import BodyReader
from lexlip.serve.current import CurrentIndex, id_of
from lexlip.serve.errors import Refusal, add_handlers, described
from lexlip.serve.headers import SecureHeaders
from lexlip.serve.hosts import AllowedHosts
from lexlip.serve.limits import Limits
from lexlip.serve.metrics import Metrics
from lexlip.serve.page_routes import LIMITED, add_page
from lexlip.serve.photos import Photos
from lexlip.serve.searcher import Searcher
from lexlip.serve.thumbnails import ThumbnailCache


def create_app(
    index: Where, model: LexiconModel, limits: Limits | None = None, hosts: frozenset[str] | None = None,
    force: bool = False, page: bool = True, photos: str | Path | bool = False, cache: ThumbnailCache | None = None,
) -> FastAPI:  # fmt: skip
    """The service as an ASGI application.

    Args:
        index: its folder, or its place in an engine; states that are published later are picked up.
        model: encodes texts and images; in evaluation mode, on the device where it is to run.
        limits: the defaults if not given.
        hosts: names that requests may give in Host, besides loopback names, from `hosts.checked_names`; None: any,
            where the server or the proxy in front looks at it.
        force: take a model that did not make the vectors.
        page: serve the page at /, and the photos and words that it shows.
        photos: the folder that ids are paths in, or True: the folders that the index remembers; False: the page shows
            words alone, and `patches` are refused.
        cache: where thumbnails are kept; None: nowhere.

    Raises:
        IndexingError: no index there, a model without a tokenizer, or one that did not make the vectors.
    """
    place = place_at(index)
    if not force:
        require_model(place, place.manifest().model, model)
    limits = limits or Limits()
    metrics = Metrics()
    current = CurrentIndex(place, metrics)
    searcher = Searcher(model, limits, metrics)
    shown = Photos(photos, current, searcher.decoders, limits, cache)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(searcher.warm_up, current.index)
        watching = asyncio.create_task(current.watch(limits.reload_seconds))
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await searcher.close()

    app = FastAPI(
        title="LexLIP", version=lexlip.__version__, lifespan=life, docs_url=None, redoc_url=None,
        redirect_slashes=False,  # the redirect would name whatever host the request named
        description="Images and captions found by the weighted words they share.",
    )  # fmt: skip
    add_handlers(app)
    read_search = BodyReader("Search", schemas.search_fields(limits.max_k), limits)
    read_explain = BodyReader("Explain", schemas.EXPLAIN_FIELDS, limits)

    @app.post(
        "/search", summary="Find the best documents for a text, an image or a bag of words",
        response_model_exclude_unset=True,
        openapi_extra={"requestBody": read_search.openapi}, responses=described(400, 408, 413, 415, 421, 422, 500, 503),
    )  # fmt: skip
    async def search(request: Request) -> schemas.SearchAnswer:
        kind, query, fields = await read_search(request)
        index = current.index  # one state from here on, whatever is published
        limit, k, drop = fields.pop("hit_words"), fields.pop("k"), fields.pop("drop")
        asked = await searcher.asked(kind, query, fields)
        hits = await searcher.search(index, asked, k, drop)
        answer = schemas.SearchAnswer(
            generation=index.manifest.generation, hits=[schemas.HitAnswer(**hit._asdict()) for hit in hits],
            unknown_words=asked.unknown,
        )  # fmt: skip
        if limit:
            for hit, words in zip(answer.hits, await searcher.words_of(index, hits, limit)):
                hit.words = schemas.word_answers(words)
            answer.query = schemas.query_answer(asked.bag, asked.conditions, searcher.vocabulary)
        return answer

    @app.post(
        "/explain", summary="What each shared word adds to a document's score", response_model_exclude_unset=True,
        openapi_extra={"requestBody": read_explain.openapi},
        responses=described(400, 404, 408, 413, 415, 421, 422, 500, 503),
    )  # fmt: skip
    async def explain(request: Request) -> schemas.ExplainAnswer:
        kind, query, fields = await read_explain(request)
        index, id = current.index, fields["id"]
        if kind == "image":
            id = id_of(index, id)  # forms hold strings
        asked = await searcher.asked(kind, query)
        try:
            shares = await searcher.explain(index, asked.bag, id)
        except DamagedIndex:
            raise
        except IndexingError as error:
            raise Refusal(404, "no_document", str(error), ("id",)) from error
        score = sum(share.score for share in sorted(shares, key=lambda share: share.term))  # as a search adds them up
        answer = schemas.ExplainAnswer(
            generation=index.manifest.generation, id=id, score=score,
            terms=[schemas.ShareAnswer(**share._asdict()) for share in shares], unknown_words=asked.unknown,
        )  # fmt: skip
        if words := fields.get("patches"):
            answer.patches = await searcher.patches(shown, id, words)
        return answer

    @app.get("/healthz", summary="Whether the service answers", responses=described(421, 500))
    async def healthz() -> schemas.HealthAnswer:
        return schemas.HealthAnswer(generation=current.index.manifest.generation, documents=len(current.index))

    @app.get(
        "/metrics", summary="Numbers for Prometheus", response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **described(421, 500)},
    )  # fmt: skip
    async def numbers() -> Response:
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    for path, answer in (("/healthz", healthz), ("/metrics", numbers)):  # FastAPI, unlike Starlette, does not add it
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    paths, limited = {"/search", "/explain", "/healthz", "/metrics", "/openapi.json"}, {"/search", "/explain"}
    if page:
        paths |= add_page(app, current, searcher, shown, limits)
        limited |= LIMITED
    app.add_middleware(SecureHeaders)
    app.add_middleware(Admission, paths=paths, limited=limited, concurrency=limits.concurrency, metrics=metrics)
    if hosts is not None:
        app.add_middleware(AllowedHosts, names=hosts)
    return app
