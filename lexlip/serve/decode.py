"""Strangers' images are decoded in processes of their own, with a limit of time and of memory; beyond, they are killed.

An image goes there and its pixels come back through pipes, which costs little beside the decode. A process starts with
its first image, and again after it was killed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lexlip.serve.decode_worker import ANSWER, READY, REQUEST, SIZE
from lexlip_data.children import python_command
from lexlip_data.errors import BrokenImage

_NO_MOMENT = -1.0
_START_SECONDS = 60  # for a process to import what it needs, on a machine that is busy
_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "from lexlip.serve.decode_worker import main; main(int(sys.argv[1]), float(sys.argv[2]))"
)


class Moment(NamedTuple):
    """A frame of a video in place of an encoded image: its file, and seconds from its start."""

    path: Path
    seconds: float


class DecodersBusy(Exception):
    """No process became free in time."""


@asynccontextmanager
async def in_turn(free: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Wait for a place, but no longer than some seconds.

    Raises:
        DecodersBusy: none became free.
    """
    try:
        await asyncio.wait_for(free.acquire(), seconds)
    except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
        raise DecodersBusy from error
    try:
        yield
    finally:
        free.release()


class Decoders:
    """A few processes that decode images.

    Args:
        processes: how many images are decoded at once.
        seconds: that one image may take.
        memory: bytes that one image may take, beyond those of the idle process; limited on Linux only.
        wait: seconds after which an image that waits for a process is given up.
    """

    def __init__(self, processes: int = 1, seconds: float = 5.0, memory: int = 2 << 30, wait: float = 10.0):
        self._seconds, self._memory, self._wait = seconds, memory, wait
        self._free = asyncio.Semaphore(processes)
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()
        self._killed: list[asyncio.subprocess.Process] = []  # that may not have ended

    async def image(self, data: bytes | Moment, square: int, max_pixels: int) -> Image.Image:
        """An image, upright, in RGB.

        Args:
            square: side in pixels of the middle square that is wanted; 0: all of the image, scaled down by a whole
                number where it has more than `MOST_PIXELS`.

        Raises:
            BrokenImage: it cannot be decoded, or not within the limits.
            DecodersBusy: too many others are being decoded.
        """
        payload = await self._payload(square, 0, max_pixels, data)
        return Image.frombytes("RGB", SIZE.unpack_from(payload), payload[SIZE.size :])

    async def jpeg(self, data: bytes | Moment, side: int, max_pixels: int) -> bytes:
        """An image as a new JPEG, upright, without anything of the file but its pixels.

        Args:
            side: pixels of the shorter side at most; the longer has at most twice as many.

        Raises:
            BrokenImage, DecodersBusy: as `image`.
        """
        return await self._payload(0, side, max_pixels, data)

    async def _payload(self, square: int, side: int, max_pixels: int, source: bytes | Moment) -> bytes:
        if isinstance(source, Moment):
            seconds, data = source.seconds, os.fsencode(source.path)
        else:
            seconds, data = _NO_MOMENT, source
        head = REQUEST.pack(square, side, max_pixels, seconds, len(data))
        async with in_turn(self._free, self._wait):
            return await self._in_process(head, data)

    async def _in_process(self, head: bytes, data: bytes) -> bytes:
        process = await self._process()
        try:
            exchange = _exchange(process, head, data)
            done, payload = await asyncio.wait_for(exchange, self._seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            self._kill(process)
            raise BrokenImage(f"takes more than {self._seconds:g} seconds to decode") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self._kill(process)
            raise BrokenImage("cannot be decoded: it ended the process that tried, or took too much memory") from error
        except BaseException:  # cancelled: the answer would be taken for that to the next image
            self._kill(process)
            raise
        self._idle.append(process)
        if not done:
            raise BrokenImage(payload.decode())
        return payload

    async def _process(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            self._all.discard(process)
        process = await asyncio.create_subprocess_exec(
            *python_command(_CODE, str(self._memory), str(self._seconds + 1)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._all.add(process)
        try:
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readexactly(len(READY)), _START_SECONDS)
        except BaseException as error:
            self._kill(process)
            if isinstance(error, asyncio.IncompleteReadError):
                raise RuntimeError("the process that decodes images did not start; its message is above") from error
            raise
        return process

    def _kill(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        self._killed = [process, *(other for other in self._killed if other.returncode is None)]
        with suppress(ProcessLookupError):
            process.kill()

    async def close(self) -> None:
        """Kill all processes, at work or not."""
        self._idle = []
        for process in list(self._all):
            self._kill(process)
        await asyncio.gather(*(process.wait() for process in self._killed))


async def _exchange(process: asyncio.subprocess.Process, head: bytes, data: bytes) -> tuple[bool, bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(head)
    process.stdin.write(data)
    await process.stdin.drain()
    done, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
    return done, await process.stdout.readexactly(length)
