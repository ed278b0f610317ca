"""The outermost layer: counts and times every request, and refuses at once those beyond the limit."""

from __future__ import annotations

from asyncio import Semaphore

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexlip.serve.errors import Refusal
from lexlip.serve.metrics import Metrics

VIDEO, WORDS = "/video/", "/words"


class Admission:
    """ASGI middleware.

    A request counts from its first byte to the end of its answer, body included, which bounds the bodies in memory.
    Images, texts, photos to be shown, videos and suggestions have places of their own: however many images are under
    way, texts are answered, and a video may hold its place for as long as it is sent. Requests that cost nothing
    (health, metrics) are always answered.

    Args:
        paths: that exist, or that begin so where they end in a slash; all others share one name in the metrics.
        limited: those of which at most `concurrency` requests with a form, as many for photos, for videos and for
            `WORDS`, and as many others, are worked on at once.
    """

    def __init__(self, app: ASGIApp, paths: set[str], limited: set[str], concurrency: int, metrics: Metrics):
        self._app, self._paths, self._limited, self._metrics = app, paths, limited, metrics
        self._free = {kind: Semaphore(concurrency) for kind in ("images", "texts", "photos", "videos", "words")}
        self._busy = Refusal(
            503, "busy", f"{concurrency} requests are being worked on; try again", headers={"Retry-After": "1"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, status = self._name(scope["path"]), "500"

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self._metrics.seconds.labels(path).time():
            try:
                if path not in self._limited:
                    await self._app(scope, receive, note_status)
                elif (free := self._free[_kind(scope, path)]).locked():
                    await self._busy.answer()(scope, receive, note_status)
                else:
                    async with free:
                        with self._metrics.active.track_inprogress():
                            await self._app(scope, receive, note_status)
            finally:
                self._metrics.requests.labels(path, status).inc()

    def _name(self, path: str) -> str:
        if path in self._paths and (path == "/" or not path.endswith("/")):
            return path
        first = path[: path.find("/", 1) + 1]
        return first if first in self._paths and first != path else "other"


def _kind(scope: Scope, path: str) -> str:
    if path.endswith("/"):
        return "videos" if path == VIDEO else "photos"
    if path == WORDS:
        return "words"
    types = (value for name, value in scope["headers"] if name == b"content-type")
    return "images" if next(types, b"").strip().lower().startswith(b"multipart/") else "texts"
