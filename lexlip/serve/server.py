"""uvicorn with what it lacks: time limits for slow clients, and an end that comes whatever is under way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

STOP_SECONDS = 30.0  # from SIGTERM to the end
_REQUESTS_SECONDS = 25  # of these, for requests that are being worked on
_ABORT_SECONDS = 28.0  # then the process is ended, whatever a thread of it does
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Server(uvicorn.Server):
    """Ends within STOP_SECONDS of the first signal, even if a thread hangs in a library.

    Args:
        give_up: what ends the process then; tests give another.
    """

    def __init__(self, config: uvicorn.Config, give_up: Callable[[], None] | None = None):
        super().__init__(config)
        self._give_up = threading.Timer(_ABORT_SECONDS, give_up or (lambda: os._exit(1)))
        self._give_up.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if not self._give_up.is_alive() and not self.should_exit:
            self._give_up.start()
        super().handle_exit(sig, frame)


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol that lets go of clients who send a request's head, or take an answer, too slowly.

    Args:
        seconds: from a connection's start, or a request's first byte, to the head's last byte, and for what is left of
            a request that was answered early; and for the client to take what was sent.
    """

    class Impatient(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _answer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = self.loop.call_later(seconds, self._too_slow)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head = self._answer = _stopped(self._head, self._answer)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._answer is None:
                self._answer = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._answer = _stopped(self._answer)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # closing would wait until it is taken

        def _watch_head(self) -> None:
            """The clock runs while part of a request is here that nobody works on."""
            working = self.cycle is not None and not self.cycle.response_complete
            idle = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            if working or idle or self.transport.is_closing():
                self._head = _stopped(self._head)
            elif self._head is None:
                self._head = self.loop.call_later(seconds, self._too_slow)

        def _too_slow(self) -> None:
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and not self.transport.is_closing():
                self.transport.write(_TOO_SLOW)
            self.transport.close()
            self.loop.call_later(1, self.transport.abort)  # where the client takes nothing

    return Impatient


def _stopped(*timers: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, for the timers that are cancelled."""
    for timer in timers:
        if timer is not None:
            timer.cancel()
    return None


def run(app: ASGIApp, host: str, port: int, head_seconds: float, **options: Any) -> None:
    """Serve until a signal comes.

    Raises:
        OSError: the address cannot be listened on.
    """
    config = uvicorn.Config(
        app, host=host, port=port, server_header=False,
        http=protocol(head_seconds),  # h11's: it bounds the size of a request's head
        ws="none", timeout_keep_alive=75,  # longer than what proxies keep connections to it open
        timeout_graceful_shutdown=_REQUESTS_SECONDS, **options,
    )  # fmt: skip
    Server(config).run()
