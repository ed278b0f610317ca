"""A time limit for calls that have none of their own.

An agent asks node 0's store ten times a second whether other nodes are waiting. When the link is cut, the question
stays in the kernel's send queue and the call does not come back, for a quarter of an hour on Linux.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PERIOD = 0.5


class Patience(threading.Thread):
    """Calls `give_up` from a thread of its own when the main thread is not back in time.

    Args:
        give_up: must end the program; the main thread hears nothing any more, signals neither.
    """

    def __init__(self, give_up: Callable[[], None]):
        super().__init__(daemon=True, name="patience")
        self.give_up = give_up
        self.until: float | None = None

    def allow(self, seconds: float | None) -> None:
        """Expect the main thread to call this again within so many seconds; None: whenever it likes."""
        self.until = None if seconds is None else time.monotonic() + seconds

    def run(self) -> None:
        while True:
            time.sleep(PERIOD)
            until = self.until
            if until is not None and time.monotonic() > until:
                self.give_up()
