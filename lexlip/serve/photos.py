"""The photos behind an index's ids, as small JPEGs; of videos their frames.

No byte of a photo's file is ever sent: what a client gets is made anew from the pixels, in a process that may be
killed, so that neither a photo's place of shooting nor a file that is no photo leaves the machine. Only ids of
documents that the index holds are looked up, and only files that lie under a known folder, links resolved, are opened.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lexlip.index.origin import Source
from lexlip.index.store import Manifest
from lexlip.serve.current import CurrentIndex
from lexlip.serve.decode import Decoders, DecodersBusy, Moment, in_turn
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import Limits
from lexlip.serve.thumbnails import ThumbnailCache
from lexlip.serve.wording import without_python
from lexlip.sync.photos import PhotoRoots, moment_in
from lexlip_data.errors import BrokenImage, MissingImage
from lexlip_data.sources.files import read_image

IMAGE_SIDE = 1440  # pixels of the shorter side of a photo that is shown alone
_PATIENCE = 30.0  # seconds that a photo waits for its turn
_Result = TypeVar("_Result")
_FORMAT = b"1"  # of what is kept; another number makes all of it anew


@dataclass(frozen=True)
class PhotoFile:
    """A photo's file as it is now.

    Attributes:
        path: real, under a known folder.
        stamp: another one for every change of the file.
        id: of the document; of a video it says the moment.
    """

    path: Path
    stamp: str
    id: str


class Photos:
    """Finds, reads and shrinks photos.

    At most `decoders` files are in memory at once, however many are asked for.

    Args:
        photos: a folder, ids being paths in it; or whether those are meant that the index remembers.
        current: the index.
        decoders: processes that decode.
        limits: of pixels, and of files.
        cache: of what was made; None: nothing is kept.
    """

    def __init__(
        self, photos: str | Path | bool, current: CurrentIndex, decoders: Decoders, limits: Limits,
        cache: ThumbnailCache | None = None,
    ):  # fmt: skip
        self._decoders, self._limits, self._cache = decoders, limits, cache
        self._files = asyncio.Semaphore(limits.decoders)
        named = [] if isinstance(photos, bool) else [Source(os.path.abspath(photos), "images")]
        self._roots, self._current, self._follows = PhotoRoots(named), current, photos is True
        self._manifest: Manifest | None = None  # whose roots they are

    @property
    def roots(self) -> PhotoRoots:
        """The folders that photos lie in, by the newest state."""
        manifest = self._current.index.manifest
        if self._follows and self._manifest is not manifest:
            self._roots, self._manifest = PhotoRoots(manifest.sources), manifest
        return self._roots

    def file(self, id: int | str) -> PhotoFile:
        """The file of a document's id.

        Raises:
            Refusal: 404, there is none.
        """
        path = self.roots.path(id)
        try:
            facts = os.stat(path) if path is not None else None
        except OSError:
            facts = None
        if path is None or facts is None:
            raise Refusal(404, "no_photo", "this document has no photo or video here, or not any more")
        key = f"{id}\0{path}\0{facts.st_dev}\0{facts.st_ino}\0{facts.st_mtime_ns}\0{facts.st_size}"
        stamp = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return PhotoFile(path, stamp, str(id))

    async def jpeg(self, file: PhotoFile, side: int) -> bytes:
        """A photo as a JPEG of so many pixels on its shorter side at most.

        Raises:
            Refusal: 404, it is gone; 422, it cannot be decoded within the limits; 503, too many wait.
        """
        key = hashlib.blake2b(f"{file.stamp} {side}".encode() + _FORMAT, digest_size=16).hexdigest()
        if self._cache is not None and (kept := await asyncio.to_thread(self._cache.get, key)) is not None:
            return kept
        made = await self._decoded(file, lambda data: self._decoders.jpeg(data, side, self._limits.max_pixels))
        if self._cache is not None:
            await asyncio.to_thread(self._cache.put, key, made)
        return made

    async def pixels(self, file: PhotoFile) -> Image.Image:
        """The photo as the model's transform takes it, all of it.

        Raises:
            Refusal: as `jpeg`.
        """
        return await self._decoded(file, lambda data: self._decoders.image(data, 0, self._limits.max_pixels))

    async def _decoded(self, file: PhotoFile, work: Callable[[bytes | Moment], Awaitable[_Result]]) -> _Result:
        async def one() -> _Result:
            async with in_turn(self._files, _PATIENCE):
                return await work(await self._read(file))

        return await refused(one(), "the photo")

    async def _read(self, file: PhotoFile) -> bytes | Moment:
        if (second := await asyncio.to_thread(moment_in, file.path, file.id)) is not None:
            return Moment(file.path, second)  # the decoder reads it: only that can be killed
        try:
            # As a photo, even if it has become a video since: no frame is made in this process.
            return await asyncio.to_thread(read_image, file.path, [str(file.path.parent)], self._limits.max_file)
        except MissingImage as error:
            raise Refusal(404, "no_photo", "this document has no photo here any more") from error
        except BrokenImage as error:
            raise Refusal(422, "broken_picture", "the photo's file is too large, or cannot be read") from error


async def refused(work: Awaitable[_Result], what: str, where: tuple = ()) -> _Result:
    """The result of a decoder's work.

    Raises:
        Refusal: 422, it cannot be decoded; 503, too many others are.
    """
    try:
        return await work
    except BrokenImage as error:
        raise Refusal(422, "broken_picture", f"{what}: {without_python(str(error))}", where) from error
    except DecodersBusy as error:
        raise Refusal(
            503, "busy", "too many images are being decoded; try again", headers={"Retry-After": "1"}
        ) from error
