"""The outermost layer: counts and times every request, and turns away those beyond the limit at once."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexlip.serve.errors import Refusal
from lexlip.serve.metrics import Metrics


class Admission:
    """ASGI middleware.

    A request counts from its head to its answer's end, its body included: so many bodies are in memory at most. What
    costs nothing (health, metrics) is always answered.

    Args:
        app: what it stands before.
        paths: that exist; others share one name in the metrics.
        limited: paths that cost something.
        concurrency: requests to these at once.
        metrics: where it counts.
    """

    def __init__(self, app: ASGIApp, paths: set[str], limited: set[str], concurrency: int, metrics: Metrics):
        self._app, self._paths, self._limited = app, paths, limited
        self._concurrency, self._metrics = concurrency, metrics
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        begin, status = time.perf_counter(), "500"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            if path not in self._limited:
                await self._app(scope, receive, noting)
            elif self._active >= self._concurrency:
                answer = Refusal(
                    503, "busy", f"{self._concurrency} requests are being worked on; try again",
                    headers={"Retry-After": "1"},
                ).answer()  # fmt: skip
                await answer(scope, receive, noting)
            else:
                await self._work(scope, receive, noting)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._active += 1
        self._metrics.active.set(self._active)
        try:
            await self._app(scope, receive, send)
        finally:
            self._active -= 1
            self._metrics.active.set(self._active)
