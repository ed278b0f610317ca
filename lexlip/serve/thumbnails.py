"""Small JPEGs on the disk, so that a photo is decoded once. Losing any of it costs time alone."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger("uvicorn.error")
_NAME = re.compile(r"[0-9a-f]{32}\.jpg")
_KEPT = 0.8  # of the bytes, once there were too many
_LEFT_BEHIND = 3600.0  # seconds after which nobody writes a file any more


def default_folder() -> Path:
    """In the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lexlip" / "thumbnails"


class ThumbnailCache:
    """Files by key, the least used removed first; several processes may share a folder.

    A folder that cannot be written is told once, and nothing is kept then.

    Args:
        folder: made when it is first needed, readable by its owner alone.
        most: bytes, of which it holds little more at any time.
    """

    def __init__(self, folder: str | Path, most: int):
        self._folder, self._most = Path(folder), most
        self._bytes: int | None = None  # not counted yet
        self._lock = threading.Lock()
        self._told = False

    def get(self, key: str) -> bytes | None:
        """What was kept under a key of 32 hexadecimal digits."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        whole = data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")
        return data if whole else None

    def put(self, key: str, data: bytes) -> None:
        """Keep a JPEG, unless it is larger than all that may be kept."""
        if len(data) > self._most:
            return
        path = self._path(key)
        new = path.with_name(f"{secrets.token_hex(8)}.tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            new.write_bytes(data)
            os.replace(new, path)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            if not self._told:
                _log.warning("thumbnails are not kept: %s", error)
            self._told = True
            return
        with self._lock:
            self._bytes = self._count() if self._bytes is None else self._bytes + len(data)
            if self._bytes > self._most:
                self._bytes = self._shrink()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.jpg"

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its bytes, and where it is."""
        found = []
        for path in self._folder.glob("??/*.jpg"):
            if _NAME.fullmatch(path.name):
                with suppress(OSError):
                    facts = path.lstat()
                    found.append((facts.st_mtime, facts.st_size, path))
        return found

    def _count(self) -> int:
        for path in self._folder.glob("??/*.tmp"):  # of a process that was killed
            with suppress(OSError):
                if path.lstat().st_mtime < time.time() - _LEFT_BEHIND:
                    path.unlink()
        return sum(size for _, size, _ in self._files())

    def _shrink(self) -> int:
        files = sorted(self._files(), key=lambda file: file[0])
        left = sum(size for _, size, _ in files)
        for _, size, path in files:
            if left <= self._most * _KEPT:
                break
            with suppress(OSError):
                path.unlink()
                left -= size
        return left
