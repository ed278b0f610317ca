"""Slow clients are let go, and a stop comes to its end."""

import asyncio
import contextlib
import signal
import socket
import threading
import time

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")

import uvicorn  # noqa: E402

from lexlip.serve import server  # noqa: E402

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def answers(scope, receive, send):
    """/large: 64 MB; /slow: after half a second; else: a word. The body is not read."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    size = 64 << 20 if scope["path"] == "/large" else 4
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    for _ in range(max(1, size >> 20)):
        await send({"type": "http.response.body", "body": bytes(min(size, 1 << 20)), "more_body": True})
    await send({"type": "http.response.body"})


@contextlib.contextmanager
def listening(seconds):
    """A service whose clients have so many seconds; gives what connects to it."""
    config = uvicorn.Config(
        answers, port=0, http=server.protocol(seconds), ws="none", lifespan="off", log_level="critical",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    service = server.Server(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    while not service.started:
        time.sleep(0.01)
    port = service.servers[0].sockets[0].getsockname()[1]
    try:
        yield lambda: socket.create_connection(("127.0.0.1", port), 10), service
    finally:
        service.should_exit = True
        thread.join()


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_heads_that_do_not_come():
    """Nothing sent, half a head, half a second head, and a body that nobody reads: the connections are closed."""
    with listening(0.2) as (connect, service):
        silent, half, second, body = (connect() for _ in range(4))
        half.sendall(GET[:-4])
        second.sendall(GET + GET[:-4])
        body.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nab")
        assert read_all(silent) == b""
        assert read_all(half).startswith(b"HTTP/1.1 408 ")
        assert b"HTTP/1.1 200 " in (received := read_all(second)) and b"HTTP/1.1 408 " in received
        assert read_all(body).startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError), connect() as dribbling:
            for byte in GET * 100:
                dribbling.sendall(bytes([byte]) if byte not in b"\r\n" else b"x")
                time.sleep(0.02)
            pytest.fail("a head that never ends was waited for")
        for connection in (silent, half, second, body):
            connection.close()


def test_a_request_that_is_worked_on_and_a_kept_connection_stay():
    with listening(0.2) as (connect, _), connect() as connection:
        for _ in range(2):
            connection.sendall(GET.replace(b"/ ", b"/slow ", 1))
            answer = b""
            while not answer.endswith(bytes(4)):  # the body, which may come by itself
                part = connection.recv(1000)
                assert part
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)  # idle, for longer than a head may take


def test_an_answer_that_is_not_taken():
    with listening(0.2) as (connect, service), connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/large ", 1))
        end = time.monotonic() + 10
        while not service.server_state.tasks:
            assert time.monotonic() < end
        while service.server_state.connections or service.server_state.tasks:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_the_first_signal_starts_the_clock(monkeypatch):
    """Whatever a thread does, the process ends when the clock has run."""
    monkeypatch.setattr(server, "_ABORT_SECONDS", 0.05)
    ended = threading.Event()
    service = server.Server(uvicorn.Config(answers), give_up=ended.set)
    service.handle_exit(signal.SIGTERM, None)
    service.handle_exit(signal.SIGTERM, None)
    assert ended.wait(5) and service.should_exit
    assert server._REQUESTS_SECONDS < server._ABORT_SECONDS or server._ABORT_SECONDS == 0.05
