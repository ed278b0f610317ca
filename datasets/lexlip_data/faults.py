"""A loader or reading process that died -> one line that says which, of what most likely, and what to do.

Linux kills the largest process when memory runs out, and leaves no trace in the process that waits for it; a count of
such kills stands in the control group's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lexlip_data.errors import DataError, one_line

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
    """What torch's error about a dead loader process means.

    Args:
        error: anything that reading from a DataLoader raised.
    Returns:
        an error whose message names the process and says what to do; None if `error` is about something else.
    """
    found = [match for link in _chain(error) if (match := _DIED.search(str(link)))]
    if not found:
        return None
    signal = next((match.group(2).strip() for match in found if match.group(2)), "")
    if signal in ("", "Killed"):
        ending = "killed (SIGKILL)" if signal else "gone without a word"
        meaning = f"{ending}, most likely by the system's memory killer{memory_kills()}: {_FEWER}"
    else:
        meaning = _MEANINGS.get(signal, f"ended by the signal {one_line(signal)}")
    return DataError(f"loader process {found[0].group(1).strip()} was {meaning}; then go on from the last checkpoint")


def memory_kills() -> str:
    """ " (kills counted in this control group: N)" where the system tells, else ""."""
    for path in _counter_files():
        try:
            text = path.read_text()
        except OSError:
            continue
        if match := re.search(r"^oom_kill (\d+)$", text, re.MULTILINE):
            return f" (kills counted in this control group: {match.group(1)})"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _counter_files(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """Of this process's own group first: version 2, version 1, then the root as a container sees it."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        own = path.lstrip("/")
        if controllers == "":
            yield root / own / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "memory" / own / "memory.oom_control"
    yield root / "memory.events"
    yield root / "memory" / "memory.oom_control"
