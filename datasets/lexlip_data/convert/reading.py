"""Reads and decodes pictures in worker processes, to be sure of each before it is stored.

Costs one decode per picture (some 5 ms for a photo of 640x480). Up to 2 * workers + 1 tasks of 8 pictures are in
flight, so memory is 16 encoded pictures per worker, and one decoded.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.loading.faults import memory_kills
from lexlip_data.sources.files import check_inside, read_picture
from lexlip_data.sources.images import open_image

_CHUNK = 8  # pictures per task: few, because a picture may be large


class PictureReader:
    """Reads and checks pictures in worker processes; results come in the order asked, few are in flight.

    With workers=0 all is done in this process.
    """

    def __init__(self, workers: int = 0, read: Callable[[str], bytes] = read_picture):
        """
        Args:
            read: path -> encoded bytes; a module-level function or a partial of one, as it travels to the workers.
        """
        if workers < 0:
            raise DataError(f"workers {workers}: must be 0 or more")
        self.workers, self.read = workers, read
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> PictureReader:
        if self.workers:
            # spawn: forking a process that runs threads, as pyarrow's does, can hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, paths: Iterable[str], roots: Sequence[str] = ()) -> Iterator[tuple[bytes | None, str, str]]:
        """For each path (bytes, "", ""), or (None, "missing", "broken" or "outside", reason).

        Args:
            roots: folders that the paths must not leave, from `real_roots`; none: they may lead anywhere.
        """
        if self._pool is None:
            for path in paths:
                yield _check(self.read, path, roots)
            return
        chunks = _chunks(paths, _CHUNK)
        waiting: deque = deque()
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(_check_all, self.read, chunk, roots))
                if len(waiting) > 2 * self.workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a reading process died, most likely by the system's memory killer{memory_kills()}: "
                "use fewer --workers; finished shards are kept"
            ) from error


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _check_all(
    read: Callable[[str], bytes], paths: list[str], roots: Sequence[str]
) -> list[tuple[bytes | None, str, str]]:
    return [_check(read, path, roots) for path in paths]


def _check(read: Callable[[str], bytes], path: str, roots: Sequence[str]) -> tuple[bytes | None, str, str]:
    try:
        check_inside(path, roots)
        data = read(path)
        open_image(data)
    except BrokenImage as error:
        return None, error.kind, str(error)
    except OSError as error:  # of a reader of the caller's own
        return None, "missing", error.strerror or str(error)
    return data, "", ""
