"""How every command of the project ends: what it tells, and with which exit status. Loads nothing heavy."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lexlip_data.errors import DataError, one_line

USAGE = 2  # a mistake of the user's, or a file that cannot be read or written
INTERRUPTED = 128 + signal.SIGINT  # as shells say it
CLOSED_PIPE = 128 + 13  # SIGPIPE, by its number because Windows has no such signal

_NEEDED = {  # what would do, where the system's reason does not say it
    errno.ENOSPC: "; make room, then start again",
    errno.EDQUOT: "; make room, then start again",
    errno.EROFS: "; name a folder that can be written",
    errno.ENAMETOOLONG: "; give a shorter name",
    errno.ELOOP: "; the link leads to itself",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}


def run_command(
    work: Callable[[], int | None], mistakes: tuple[type[Exception], ...] = (), stopped: str = "stopped by Ctrl-C"
) -> int:
    """Do a command's work and tell how it ended, one line for whatever a user can mend.

    Args:
        work: returns the exit status, None for 0. What it imports itself can be interrupted without a traceback.
        mistakes: further errors whose message says what is wrong; those of data and of the system always count.
        stopped: what to say after Ctrl-C.

    Returns:
        Exit status: that of `work`; 2 for a mistake; 130 after Ctrl-C; 141 if the reader of the output went away, which
        is what shells report of `yes | head`.
    """
    print_anything()
    if signal.getsignal(signal.SIGINT) is _stop_loading:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    told: tuple[type[Exception], ...] = (*mistakes, DataError, OSError)
    try:
        status = work() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        return CLOSED_PIPE
    except told as error:
        return _say(f"error: {reason(error)}", USAGE)
    except KeyboardInterrupt:
        return _say(stopped, INTERRUPTED)
    finally:
        _let_go()


def interrupt_in_one_line() -> None:
    """From now until `run_command`, Ctrl-C ends the process in one line: for scripts that load what is heavy first."""
    signal.signal(signal.SIGINT, _stop_loading)


def _stop_loading(*_: object) -> None:
    _say("stopped by Ctrl-C", INTERRUPTED)
    os._exit(INTERRUPTED)  # an exception would be lost in whatever is being imported, or reported by it


def reason(error: Exception) -> str:
    """An error in one line; of the system's errors the file, the reason and what would do."""
    if not isinstance(error, OSError) or error.strerror is None:
        return one_line(" ".join(str(error).split()) or type(error).__name__, 2000)
    files = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
    )
    text = f"{files}: {error.strerror}" if files else error.strerror
    return one_line(f"{text}{_in_the_way(error)}", 2000) + _NEEDED.get(error.errno or 0, "")


def _in_the_way(error: OSError) -> str:
    """Which file stands where a folder is due; the system names only the path that it was asked for."""
    if error.errno not in (errno.ENOTDIR, errno.EEXIST) or not isinstance(error.filename, str):
        return ""
    path = Path(error.filename)
    file = next((part for part in (path, *path.parents) if os.path.isfile(part)), None)
    return f"; {file} is a file, not a folder" if file else ""


def print_anything() -> None:
    """Let what the terminal's encoding lacks be printed as \\uXXXX rather than end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # tests and notebooks put other objects there
            stream.reconfigure(errors="backslashreplace")


def prints_unicode() -> bool:
    """Whether standard output takes all of Unicode; what must stay JSON is escaped by JSON's own rules where not."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _say(line: str, status: int) -> int:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    return status


def _let_go() -> None:
    """Flush; lead what cannot be written any more to nowhere, or Python tries and complains once more as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
