"""Shell-like patterns of files, expanded here: `x/{00000..00331}.tar` and `part-*.parquet` come in quotes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import require_file

_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")


def find_files(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of one pattern or some, in the order that these give; those of `*`, `?` and `[...]` by name.

    Braces name files that must be there: a shard that is missing is an error, not fewer images.

    Raises:
        DataError: a file is missing or no ordinary file, a pattern matches none, or one file comes twice.
    """
    found: dict[str, Path] = {}
    for pattern in [patterns] if isinstance(patterns, (str, Path)) else patterns:
        text = str(pattern)
        if re.match(r"[a-z0-9]+://|pipe:", text):
            raise DataError(f"{one_line(text)}: not a local file; copy or mount the files and name them here")
        # A file may itself be called what looks like a pattern.
        for name in [text] if os.path.lexists(text) else _expanded(text):
            matches = sorted(glob.glob(name)) if re.search(r"[*?[]", name) and not os.path.lexists(name) else [name]
            if not matches:
                raise DataError(f"{one_line(name)}: no file matches; check the pattern, and quote it")
            for match in matches:
                require_file(match)
                real = os.path.realpath(match)
                if real in found:
                    raise DataError(f"{match}: named twice, also as {found[real]}; give each file once")
                found[real] = Path(match)
    if not found:
        raise DataError("no file was named")
    return list(found.values())


def _expanded(text: str) -> Iterator[str]:
    """`a{8..10}b` -> a8b, a9b, a10b; `{08..10}` keeps the zeros; `{x,y}` -> x, y."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    first, last, listed = match.groups()
    if listed is None:
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        values: Iterator[str] = (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
    else:
        values = iter(listed.split(","))
    for value in values:
        yield from _expanded(text[: match.start()] + value + text[match.end() :])
