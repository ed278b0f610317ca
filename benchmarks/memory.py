"""The memory of processes, as Linux counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def memory_of(process: int | str, name: str, file: str = "status") -> int:
    """Bytes under a name of /proc/PROCESS/FILE, such as VmRSS (resident now) or VmHWM (at most so far).

    Raises:
        OSError: the system has no /proc, or the process has ended.
    """
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/{file} has no {name}")


def own_peak() -> int:
    """Bytes that this process held at most, mapped files included."""
    try:
        # Of this program alone: what getrusage says begins with what the parent held when it forked.
        return memory_of("self", "VmHWM")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
