"""Only requests that name this service by a name it goes by: a page elsewhere cannot reach it by a name of its own.

A browser sends the name of the page's own server. If that name is pointed at this machine ("DNS rebinding"), the page
could read the answers of a service that listens on loopback only. A proxy in front has names of its own: allow them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from lexlip.errors import ConfigError
from lexlip.serve.errors import Refusal

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?")
EVERY = ("0.0.0.0", "::", "")  # addresses to listen on that are no names


def host_name(header: str) -> str | None:
    """The name in a Host header, without port and brackets; None if it has no such form."""
    found = _HOST.fullmatch(header.strip().lower())
    return found["name"].strip("[]").rstrip(".") if found else None


def is_loopback(name: str) -> bool:
    """Whether a name or address always means this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def checked_names(names: Iterable[str]) -> frozenset[str]:
    """Names as `host_name` gives them; "*" stays and stands for all.

    Raises:
        ConfigError: something that no Host header could name.
    """
    checked = set()
    for name in names:
        bare = f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
        found = "*" if name == "*" else host_name(bare)
        if not found:
            raise ConfigError(f"--allow-host {name!r}: a host's name or address, such as search.example.org, or *")
        checked.add(found)
    return frozenset(checked)


class AllowedHosts:
    """ASGI middleware: 421 for requests that name another host.

    Args:
        names: allowed besides loopback names and addresses, from `checked_names`.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            refusal = Refusal(
                421, "unknown_host", "the request's Host is none that this service goes by; --allow-host NAME adds one",
                headers={"Connection": "close"},
            )  # fmt: skip
            await refusal.answer()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        if "*" in self._names:
            return True
        given = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        name = host_name(given[0]) if len(given) == 1 else None
        return name is not None and (name in self._names or is_loopback(name))
