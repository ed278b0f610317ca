"""Run a function in a child process and say how it ended: a crash, a hang and memory are seen from outside."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable

SECONDS, ADDRESSES = 60, 8 << 30  # addresses besides those of the process that it is forked from


def run_apart(work: Callable[[], dict[str, str]]) -> tuple[dict[str, str], int]:
    """What the function returns, and by how many bytes its process grew.

    A process that dies returns {"process": "crashed by signal N"}.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (_addresses() + ADDRESSES,) * 2)
            before = _high_water()
            with os.fdopen(writer, "w") as file:
                json.dump([work(), _high_water() - before], file)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, ended = os.waitpid(child, 0)
    if ended:
        number = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0
        hung = number == signal.SIGALRM
        return {"process": "hung" if hung else f"crashed by signal {number}" if number else "died"}, 0
    outcomes, grown = json.loads(text)
    return outcomes, grown


def _addresses() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
