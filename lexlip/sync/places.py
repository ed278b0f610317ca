"""Where the index of a folder lies if nobody names a place: with the user's data, never among the photos."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path


def index_of(photos: str | Path) -> Path:
    """The folder of the index; the same for every path that leads to the photos."""
    real = os.path.realpath(photos)
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(real)).strip("-.") or "photos"
    digest = hashlib.blake2b(os.fsencode(real), digest_size=4).hexdigest()
    return _data_folder() / "lexlip" / "indexes" / f"{name}-{digest}"


def _data_folder() -> Path:
    if named := os.environ.get("XDG_DATA_HOME"):
        return Path(named)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local)
    return Path.home() / (Path("Library") / "Application Support" if sys.platform == "darwin" else ".local/share")
