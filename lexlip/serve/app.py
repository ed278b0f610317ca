"""The routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import lexlip
from lexlip.index import DamagedIndex, IndexingError
from lexlip.index.origin import require_model
from lexlip.index.store import read_manifest
from lexlip.models.retrieval import LexiconModel
from lexlip.serve import schemas
from lexlip.serve.admission import Admission
from lexlip.serve.bodies import BodyReader
from lexlip.serve.current import CurrentIndex
from lexlip.serve.errors import ErrorAnswer, Refusal, add_handlers
from lexlip.serve.hosts import AllowedHosts
from lexlip.serve.limits import Limits
from lexlip.serve.metrics import Metrics
from lexlip.serve.searcher import Searcher

_REASONS = {
    400: "Neither JSON nor a form",
    404: "No document has this id",
    408: "The body arrived too slowly",
    413: "The body is too large",
    415: "Another content type",
    421: "Another host is meant",
    422: "Invalid fields, query or image",
    500: "A mistake of the service, or a damaged index",
    503: "Too many requests at once",
}


_NUMBER_ID = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # as JSON writes it


def create_app(
    index: str | Path, model: LexiconModel, limits: Limits | None = None, hosts: frozenset[str] | None = None,
    force: bool = False,
) -> FastAPI:  # fmt: skip
    """The service as an ASGI application.

    Args:
        index: folder of the index; states that are published later are picked up.
        model: encodes texts and images; in evaluation mode, on the device where it is to run.
        limits: the defaults if not given.
        hosts: names that requests may give in Host, besides loopback names, from `hosts.checked_names`; None: any,
            where the server or the proxy in front looks at it.
        force: take a model that did not make the vectors.

    Raises:
        IndexingError: no index there, a model without a tokenizer, or one that did not make the vectors.
    """
    if not force:
        require_model(index, read_manifest(Path(index)).model, model)
    limits = limits or Limits()
    metrics = Metrics()
    current = CurrentIndex(Path(index), metrics)
    searcher = Searcher(model, limits, metrics)

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
        openapi_extra={"requestBody": read_search.openapi}, responses=_errors(400, 408, 413, 415, 421, 422, 500, 503),
    )  # fmt: skip
    async def search(request: Request) -> schemas.SearchAnswer:
        kind, query, fields = await read_search(request)
        index = current.index  # one state from here on, whatever is published
        bag, unknown = await searcher.bag(kind, query)
        hits = await searcher.search(index, bag, **fields)
        return schemas.SearchAnswer(
            generation=index.manifest.generation, hits=[schemas.HitAnswer(**hit._asdict()) for hit in hits],
            unknown_words=unknown,
        )  # fmt: skip

    @app.post(
        "/explain", summary="What each shared word adds to a document's score",
        openapi_extra={"requestBody": read_explain.openapi},
        responses=_errors(400, 404, 408, 413, 415, 421, 422, 500, 503),
    )  # fmt: skip
    async def explain(request: Request) -> schemas.ExplainAnswer:
        kind, query, fields = await read_explain(request)
        index, id = current.index, fields["id"]
        if kind == "image" and index.manifest.settings.ids == "int" and _NUMBER_ID.fullmatch(id):
            id = int(id)  # forms hold strings
        bag, unknown = await searcher.bag(kind, query)
        try:
            shares = await searcher.explain(index, bag, id)
        except DamagedIndex:
            raise
        except IndexingError as error:
            raise Refusal(404, "no_document", str(error), ("id",)) from error
        score = sum(share.score for share in sorted(shares, key=lambda share: share.term))  # as a search adds them up
        return schemas.ExplainAnswer(
            generation=index.manifest.generation, id=id, score=score,
            terms=[schemas.ShareAnswer(**share._asdict()) for share in shares], unknown_words=unknown,
        )  # fmt: skip

    @app.get("/healthz", summary="Whether the service answers", responses=_errors(421, 500))
    async def healthz() -> schemas.HealthAnswer:
        return schemas.HealthAnswer(generation=current.index.manifest.generation, documents=len(current.index))

    @app.get(
        "/metrics", summary="Numbers for Prometheus", response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_errors(421, 500)},
    )  # fmt: skip
    async def numbers() -> Response:
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    for path, answer in (("/healthz", healthz), ("/metrics", numbers)):  # FastAPI, unlike Starlette, does not add it
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    paths = {"/search", "/explain", "/healthz", "/metrics", "/openapi.json"}
    app.add_middleware(
        Admission, paths=paths, limited={"/search", "/explain"}, concurrency=limits.concurrency, metrics=metrics
    )
    if hosts is not None:
        app.add_middleware(AllowedHosts, names=hosts)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in statuses}
