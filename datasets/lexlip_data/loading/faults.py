"""A loader process that died -> one line that says which, of what most likely, and what to do.

Linux kills the largest process when memory runs out, and leaves no trace in the process that waits for it; only the
control group's files count such kills.
"""

import re
import signal
import traceback
from collections.abc import Iterator

from lexlip_data.errors import DataError, memory_kills, one_line

_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited unexpectedly)"
)
_FEWER = "use fewer num_workers, or a smaller batch per process"
_MEANINGS = {  # torch's word for the signal -> how the process ended
    "Bus error": "ended by a bus error (SIGBUS): either shared memory is full (give /dev/shm more, in a container with "
        f"--shm-size, or {_FEWER}), or a data file was cut short while it was being read",
    "Segmentation fault": "ended by a segmentation fault (SIGSEGV): a fault in a library that decodes the data",
    "Terminated": "ended from outside (SIGTERM)",
}  # fmt: skip


def explain_loader_failure(error: BaseException) -> DataError | None:
    """What an error means that reading from a DataLoader raised because a process of it died.

    It is most often torch's own, or a broken connection if the process was handing over a batch. None if it is about
    something else; else the message names the process and says what to do.
    """
    try:
        return _explain(error)
    except RuntimeError as late:  # torch's signal handler raises its error wherever this process happens to be
        return _explain(late) or _explain(error)


def _explain(error: BaseException) -> DataError | None:
    links = list(_chain(error))
    deaths = [match for link in links if (match := _DIED.search(str(link)))]
    if deaths:
        pids = deaths[0].group(1).strip()
        ending = next((match.group(2).strip() for match in deaths if match.group(2)), "")
    elif any(_broken_off(link) for link in links):
        dead = {pid: code for link in links for pid, code in _dead_workers(link).items()}
        pids = ", ".join(map(str, dead)) or "(of unknown number)"
        ending = next((signal.strsignal(-code) or "" for code in dead.values() if code < 0), "")
    else:
        return None
    if ending in ("", "Killed"):
        word = "killed (SIGKILL)" if ending else "gone without a word"
        meaning = f"{word}, most likely by the system's memory killer{memory_kills()}: {_FEWER}"
    else:
        meaning = _MEANINGS.get(ending, f"ended by the signal {one_line(ending)}")
    return DataError(f"loader process {pids} was {meaning}; then go on from the last checkpoint")


def _broken_off(error: BaseException) -> bool:
    """Whether a connection to a loader process broke while it handed over a batch: then no message names it.

    With pinned memory a thread receives the batches, and its traceback is in the error's text.
    """
    if not isinstance(error, (OSError, EOFError)):
        return False
    return "resource_sharer.py" in f"{error}{''.join(traceback.format_tb(error.__traceback__))}"


def _dead_workers(error: BaseException) -> dict[int, int]:
    """Exit code by pid of the processes that died, of the loaders that the error came through."""
    dead = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for worker in getattr(frame.f_locals.get("self"), "_workers", ()):  # torch's name in all its releases so far
            worker.join(timeout=1)
            if worker.exitcode not in (None, 0, -signal.SIGTERM):  # so end the others, when the loader is shut down
                dead[worker.pid] = worker.exitcode
    return dead


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
