"""What the fuzzers of files share: an input is a function of (seed, number), and is opened in a process of its own.

An input may be opened, or refused with one line by an error for users. It must not end in any other way: "crash" (any
other error, a file written, a connection tried), "hang", "memory".
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets"), str(ROOT / "scripts")]

from fuzz import in_process  # noqa: E402, F401  (scripts/fuzz.py, for those who use this file)

OUTCOMES = ("opened", "refused", "crash", "hang", "memory")


class Network(AssertionError):
    """A connection was tried."""


def no_network() -> None:
    """From here on, whatever looks up an address or connects fails with `Network`. Call it in the child process."""

    def refuse(*given: object, **named: object) -> None:
        raise Network(str(given[-1:]))

    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = socket.create_connection = refuse  # type: ignore[assignment]


def opening(open_it: Callable[[], object], folder: Path, errors: tuple[type[Exception], ...]) -> tuple[str, str]:
    """Outcome and message of opening an input below `folder` without a network, where nothing may be written.

    Args:
        errors: those for users, whose message must be one line.
    """
    no_network()
    before = _files(folder)
    try:
        open_it()
        outcome, message = "opened", ""
    except errors as error:
        told = str(error)
        # A list of names that do not fit has one name a line, and its first line says what is wrong.
        lines = told.splitlines()
        short = len(told) < 2000 and (len(lines) == 1 or lines[0].endswith("does not fit this model:"))
        outcome, message = ("refused" if short else "crash"), told
    if _files(folder) != before:
        return "crash", f"files were written; {message}"
    return outcome, message


def _files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def table(rows: dict[str, Counter], what: str) -> str:
    """Counts of outcomes as Markdown."""
    lines = [f"| {what} | files | {' | '.join(OUTCOMES)} |", "| --- " * (len(OUTCOMES) + 2) + "|"]
    for name, counts in [*sorted(rows.items()), ("all", sum(rows.values(), Counter()))]:
        numbers = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {name} | {sum(counts.values())} | {numbers} |")
    return "\n".join(lines)
