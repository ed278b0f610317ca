"""The files of a folder as documents: photos, and moments of videos where PyAV is installed.

A file's content is read once to know it (its digest) and once to decode it; what changes in between is left for the
next sync.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lexlip.encode.files import FolderImages
from lexlip.sync.photos import moment_of
from lexlip.sync.state import Entry
from lexlip_data.errors import BrokenImage, BrokenSample, MissingImage, one_line
from lexlip_data.sources.files import check_inside, read_image
from lexlip_data.sources.kinds import kind_of_file

JUST_NOW = 2_000_000_000  # nanoseconds in which a file may change again and keep its time


class MediaFiles(FolderImages):
    """The images of a folder, and its videos.

    Args:
        folder: where to look.
        every: seconds between two moments of a video; 0: no videos.
        digests: of the files' content as it is to be, by name; of others nothing is asked.
    """

    def __init__(self, folder: str | Path, every: float = 0.0):
        self.every = every
        self.digests: dict[str, str] = {}
        super().__init__(folder, also=("video",) if every else ())

    def documents(self, names: Sequence[str], digests: dict[str, str]) -> MediaFiles:
        """Some documents of files whose content is known."""
        part: MediaFiles = self.of(names)  # type: ignore[assignment]
        part.digests = digests
        return part

    def image(self, i: int) -> tuple[str, bytes]:
        document = self.name(i)
        name, moment = document, None
        if document not in self.digests:
            name, moment = moment_of(document)
        if moment is not None:
            from lexlip.sync.video import frame_at

            check_inside(self.folder / name, self._roots)
            return document, frame_at(self.folder / name, moment)
        data = read_image(self.folder / name, self._roots)
        if digest_of(data) != self.digests.get(name, digest_of(data)):
            raise Moved("changed while it was read")
        return document, data

    def look(self, name: str) -> tuple[int, int] | None:
        """Bytes and time of a file; None if it is not there."""
        try:
            facts = os.stat(self.folder / name)
        except (OSError, ValueError):
            return None
        recent = facts.st_mtime_ns > time.time_ns() - JUST_NOW
        return facts.st_size, 0 if recent else facts.st_mtime_ns

    def read(self, name: str) -> Entry:
        """What a file holds now.

        Raises:
            MissingImage: it is not there any more.
        """
        seen = self.look(name)
        if seen is None:
            raise MissingImage("is not there any more")
        try:
            if self.every and kind_of_file(self.folder / name) == "video":
                return self._video(name, seen)
            return Entry(*seen, digest_of(read_image(self.folder / name, self._roots)))
        except MissingImage:
            raise
        except BrokenSample as error:
            return Entry(seen[0], 0, "", one_line(error))  # looked at again next time: it may be readable then

    def _video(self, name: str, seen: tuple[int, int]) -> Entry:
        from lexlip.sync.video import moments

        path = self.folder / name
        check_inside(path, self._roots)
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise BrokenImage(error.strerror or str(error)) from error
        try:
            return Entry(*seen, digest.hexdigest(), moments=tuple(moments(path, self.every)))
        except BrokenSample as error:
            return Entry(*seen, digest.hexdigest(), one_line(error))

    def is_gone(self, name: str) -> bool:
        """Whether a file that is not listed can be told to be gone: its folder can be read, or is gone too."""
        parent = (self.folder / name).parent
        try:
            os.scandir(parent).close()
        except (FileNotFoundError, NotADirectoryError):
            return self.folder.is_dir()
        except OSError:
            return False
        return True


class Moved(BrokenSample):
    """A file's content is not what it was a moment ago."""

    kind = "moved"


def digest_of(data: bytes) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
