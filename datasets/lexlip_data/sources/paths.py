"""One name for one file: the paths of a table, so that `./a.jpg`, `b//../a.jpg` and `a.jpg` are one image."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

_ODD = r"(^|/)\.\.(/|$)|[^\x00-\x7f]"  # needs a look at the folder: `..` behind a link, and accents


def normal_paths(paths: pa.Array, folder: str | Path) -> pa.Array:
    """Paths as the shortest of the names that mean the same file, large_string (rows,).

    `.` and doubled separators go; `a/..` too, unless `a` is a link. An accented name is written in the other of
    Unicode's two forms (NFC, NFD) where only that is there. Costs a few system calls for each path with `..` or letters
    beyond ASCII.
    """
    doubled = r"//|(^|/)\.(/|$)"
    if pc.any(pc.match_substring_regex(paths, doubled)).as_py():
        plain = pc.replace_substring_regex(paths, r"/(\.?/)+", "/")
        plain = pc.replace_substring_regex(plain, r"^(\./)+", "")
        paths = pc.if_else(pc.equal(plain, ""), paths, plain)
    odd = pc.match_substring_regex(paths, _ODD)
    if not pc.any(odd).as_py():
        return paths
    known = pc.unique(paths.filter(odd)).to_pylist()
    better = {path: _in_folder(path, str(folder)) for path in known}
    return pa.array([better.get(path, path) for path in paths.to_pylist()], pa.large_string())


def _in_folder(path: str, folder: str) -> str:
    try:
        if re.search(r"[^/]/\.\.(/|$)", path):
            head, tail = os.path.split(path)
            short = _without_parents(head, folder)
            path = f"{short}/{tail}" if short != "." else tail
        if not path.isascii() and not os.path.lexists(os.path.join(folder, path)):
            forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
            path = next((form for form in forms if os.path.lexists(os.path.join(folder, form))), path)
    except (OSError, ValueError):  # impossible paths are named when they are opened
        pass
    return path


@lru_cache(maxsize=1 << 16)
def _without_parents(head: str, folder: str) -> str:
    """A folder's path without `..`, unless a link in it makes that another folder."""
    short = os.path.normpath(head)
    real = os.path.realpath(os.path.join(folder, head))
    return short if real == os.path.realpath(os.path.join(folder, short)) else head
