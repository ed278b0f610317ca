"""A video's file as it is, whole or in the parts that are asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from lexlip_data.sources.files import NONBLOCK
from lexlip_data.sources.kinds import HEAD, video_type

_OPENED = "/dev/fd/"  # names of a process's open files
_FLAGS = NONBLOCK | getattr(os, "O_NOFOLLOW", 0)


class VideoResponse(FileResponse):
    """What is sent is the file that was looked at, even where another one, or a link, has its name by now.

    On systems where an open file has no name of its own, such as Windows, the path is opened again.

    Args:
        path: of the file, links resolved.

    Raises:
        OSError: there is no such file, or not any more.
        ValueError: it is no video.
    """

    def __init__(self, path: Path):
        self._file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | _FLAGS))
        try:
            facts = os.fstat(self._file.fileno())
            kind = video_type(self._file.read(HEAD)) if stat.S_ISREG(facts.st_mode) else None
            if kind is None:
                raise ValueError("no video")
            self._file.seek(0)  # macOS opens with the position of the file that is open
            opened = f"{_OPENED}{self._file.fileno()}"
            headers = {"Cache-Control": "private, max-age=60"}
            super().__init__(
                opened if os.path.exists(opened) else path, media_type=kind, stat_result=facts, headers=headers
            )
        except BaseException:
            self._file.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)
