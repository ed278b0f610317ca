"""The ways in which data can be wrong, and what the messages about them have in common."""

import re
from contextlib import suppress
from pathlib import Path


class DataError(ValueError):
    """A file, table or option is unusable; the message names it and says what to do."""


class BrokenSample(DataError):
    """One image or caption cannot be used: skipped and counted in training, fatal in evaluation."""


class BrokenImage(BrokenSample):
    """The image cannot be read or decoded."""

    kind = "broken"  # how the converter lists it


class MissingImage(BrokenImage):
    """The image's file is not there."""

    kind = "missing"


class OutsideImage(BrokenImage):
    """The image's path leads out of the folders that may be read."""

    kind = "outside"


def one_line(text: object, limit: int = 300) -> str:
    """Text that others wrote, fit for a message: without line breaks and other control characters.

    Of more than `limit` characters the middle is left out, because the reason stands at the end.
    """
    text = str(text)
    text = text if len(text) <= limit else f"{text[: limit // 2]}...{text[3 - limit // 2 :]}"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def memory_kills(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> str:
    """ " (kills counted in this control group: N)" where Linux counts its memory killer's victims, else ""."""
    counters = []  # of this process's own group first: version 2, version 1, then the root as a container sees it
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if controllers == "":
                counters.append(root / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                counters.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    for counter in (*counters, root / "memory.events", root / "memory" / "memory.oom_control"):
        with suppress(OSError):
            if match := re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE):
                return f" (kills counted in this control group: {match.group(1)})"
    return ""
