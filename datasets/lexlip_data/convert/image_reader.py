"""Reads and decodes images in worker processes, to be sure of each before it is stored.

Costs one decode per image (some 5 ms for a photo of 640x480). Up to 2 * workers + 1 tasks of 8 images are in flight,
so memory is 16 encoded images per worker, and one decoded.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any

from lexlip_data.children import safe_path
from lexlip_data.errors import BrokenImage, DataError, memory_kills
from lexlip_data.sources.files import check_inside, read_image
from lexlip_data.sources.images import open_image
from lexlip_data.sources.kinds import unread_named

_CHUNK = 8  # images per task: few, because an image may be large
Checked = tuple[bytes | None, str, str]  # (bytes, "", ""), or (None, "missing", "broken" or "outside", reason)


class ImageReader:
    """Reads and checks images in worker processes; results come in the order of the paths, and few are in flight.

    With workers=0 everything is done in this process.
    """

    def __init__(self, workers: int = 0, read: Callable[[str], bytes] = read_image):
        if workers < 0:
            raise DataError(f"workers {workers}: must be 0 or more")
        # `read` gives encoded bytes; a module-level function or a partial of one, as it travels to the workers.
        self.workers, self.read = workers, read
        # spawn: forking a process that runs threads, as pyarrow's does, can hang.
        context = multiprocessing.get_context("spawn")
        with safe_path():
            self._pool = ProcessPoolExecutor(workers, mp_context=context) if workers else None

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, paths: Iterable[str], roots: Sequence[str] = ()) -> Iterator[Checked]:
        """The image of each path, or why it cannot be used; without `roots` (`real_roots`) paths may lead anywhere."""
        check = partial(_check, self.read, roots)
        if self._pool is None:
            for path in paths:
                yield from check([path])
            return
        paths, waiting = iter(paths), deque[Any]()
        try:
            while chunk := list(islice(paths, _CHUNK)):
                with safe_path():  # processes start with their first tasks
                    waiting.append(self._pool.submit(check, chunk))
                if len(waiting) > 2 * self.workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a reading process died, most likely by the system's memory killer{memory_kills()}: "
                "use fewer --workers; finished shards are kept"
            ) from error


def _check(read: Callable[[str], bytes], roots: Sequence[str], paths: list[str]) -> list[Checked]:
    results: list[Checked] = []
    for path in paths:
        try:
            check_inside(path, roots)
            data = read(path)
            with unread_named(data):
                open_image(data)
            results.append((data, "", ""))
        except BrokenImage as error:
            results.append((None, error.kind, str(error)))
        except OSError as error:  # of a `read` of the caller's own
            results.append((None, "missing", error.strerror or str(error)))
    return results
