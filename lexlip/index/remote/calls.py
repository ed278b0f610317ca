"""Calls to an engine elsewhere: what may pass is tried again, and the rest is told in one line."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import TypeVar

from lexlip.errors import EngineError, UserError
from lexlip_data.errors import one_line

_Answer = TypeVar("_Answer")
_LONGEST_PAUSE = 30.0


class Trouble(Enum):
    """Kinds of failure: what to say of each, and what to do."""

    DOWN = "does not answer", ": is it running, and is --uri right?"
    BUSY = "is too busy", ": try again later"
    DENIED = (
        "refuses the credentials",
        ": set LEXLIP_ENGINE_USER and LEXLIP_ENGINE_PASSWORD, or LEXLIP_ENGINE_API_KEY, or give --credentials FILE",
    )
    FULL = "has no space left, or may not grow", ": make room there"
    REFUSED = "refuses the request", ""


_PASSING = (Trouble.DOWN, Trouble.BUSY)


@dataclass(frozen=True)
class Patience:
    """How long one waits for an engine.

    Attributes:
        seconds: for one answer.
        tries: of a call that fails by what may pass.
    """

    seconds: float
    tries: int


# A push of hours should live through the restart of a node; whoever searches sits and waits.
PUSHING = Patience(seconds=60.0, tries=8)
SEARCHING = Patience(seconds=10.0, tries=2)


def call(
    work: Callable[[], _Answer], diagnose: Callable[[Exception], tuple[Trouble, str]], where: str, tries: int
) -> _Answer:
    """Do some work, again after a pause where that may help: half a second, doubled each time, up to 30.

    Args:
        work: the call.
        diagnose: what an exception of the engine's client means, and its words.
        where: for the message.
        tries: at most.

    Raises:
        EngineError: what `diagnose` says of the last failure.
    """
    for attempt in count(1):
        try:
            return work()
        except UserError:  # said already
            raise
        except Exception as error:  # clients raise what their layers raise: sockets, gRPC, HTTP, JSON
            trouble, words = diagnose(error)
            if trouble not in _PASSING or attempt == tries:
                tried = f" after {attempt} tries" if attempt > 1 else ""
                what, advice = trouble.value
                raise EngineError(f"{where} {what}{tried}{advice} ({one_line(words, 200)})") from error
        time.sleep(min(_LONGEST_PAUSE, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25))
    raise AssertionError


def of_status(status: int, words: str) -> Trouble:
    """What an HTTP status means; a full disk comes as several of them, so the words count too."""
    lower = words.lower()
    full = ("flood-stage", "flood stage", "no space left", "out of disk", "disk usage exceeded", "disk quota")
    if status == 507 or (status >= 400 and any(sign in lower for sign in full)):
        return Trouble.FULL
    if status in (401, 403):
        return Trouble.DENIED
    if status == 429:
        return Trouble.BUSY
    return Trouble.DOWN if status in (502, 503, 504) else Trouble.REFUSED
