"""Where the photo of an id lies: only under the folders that the index remembers. Needs no torch.

An index may come from a stranger, and an id from a request: neither leads out of the folders. Whether the index holds
the id is not looked at. Costs some system calls an id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lexlip.index.origin import Source
from lexlip_data.sources.files import is_file, is_hidden, is_inside, read_image, real_roots
from lexlip_data.sources.kinds import kind_of_file

_MOMENT = re.compile(r"(.+)#t=(\d{1,7}(?:\.\d{1,3})?)", re.DOTALL)


def read_photo(path: Path, id: str, most: int | None = None) -> bytes:
    """The encoded image of an id whose file is known: the file itself, or the frame at a moment of a video as JPEG.

    Of a video that is one document it is the first frame.

    Args:
        path: real, as `PhotoRoots.path` gives it; a link that has come into its place leads nowhere else.
        most: bytes of a file that is read, at most.

    Raises:
        BrokenImage: it cannot be read.
    """
    moment = moment_in(path, id)
    if moment is None:
        return read_image(path, [str(path.parent)], most)
    from lexlip.sync.video import frame_at

    return frame_at(path, moment)


def moment_in(path: Path, id: str) -> float | None:
    """The second in an id's file, as `PhotoRoots.path` gives it; None where the file is a photo."""
    moment = None if path.name == id.rpartition("/")[2] else moment_of(id)[1]
    if moment is not None:
        return moment
    return 0.0 if kind_of_file(path) == "video" else None


def moment_of(id: str) -> tuple[str, float | None]:
    """The name of a file and the second in it that an id means; None for a photo."""
    found = _MOMENT.fullmatch(id)
    return (found[1], float(found[2])) if found else (id, None)


class PhotoRoots:
    """The folders of an index, for many ids of one state.

    Args:
        sources: of the index's manifest.
    """

    def __init__(self, sources: Iterable[Source]):
        # The longest prefix first: "holiday/" before "".
        images = sorted((s for s in sources if s.what == "images"), key=lambda source: -len(source.id_prefix))
        self.sources = tuple(source for source in images if os.path.isdir(source.root))
        self._roots = real_roots([source.root for source in self.sources])

    def path(self, id: object) -> Path | None:
        """The real file of an id, if it lies under a folder of images that the index remembers; else None.

        Of a moment of a video (`clip.mp4#t=12.0`) it is the video.
        """
        if not isinstance(id, str):
            return None
        for name in dict.fromkeys((id, moment_of(id)[0])):
            for source in self.sources:
                found = self._inside(source.root, name.removeprefix(source.id_prefix))
                if name.startswith(source.id_prefix) and found is not None:
                    return found
        return None

    def _inside(self, root: str, name: str) -> Path | None:
        parts = name.split("/")
        odd = any(part in ("", ".", "..") or is_hidden(part) for part in parts)
        if odd or "\0" in name or (os.sep != "/" and (os.sep in name or ":" in name)):
            return None
        try:
            real = os.path.realpath(os.path.join(root, *parts), strict=True)
        except (OSError, ValueError):  # nothing there, or no possible path
            return None
        return Path(real) if is_inside(real, self._roots) and is_file(real) else None
