"""Other processes of this Python, in which nothing that lies in the current folder is run.

`python -c` and multiprocessing look for modules in the current folder first, which may hold a stranger's `json.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def python_command(code: str, *arguments: str) -> list[str]:
    """The command that runs some code with this process's module search path, as it is from here."""
    paths = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    # `sys` is built in, so nothing is looked up before the path is right.
    return [sys.executable, "-c", f"import sys; sys.path[:] = {ascii(paths)}\n{code}", *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """While processes of multiprocessing start. Python 3.10 does not know the setting."""
    name, before = "PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
