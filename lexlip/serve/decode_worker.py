"""The process that decodes: it may be killed at any moment, and nothing but one image is lost.

Started by `lexlip.serve.decode`. It loads no torch, so it takes 50 MB and half a second. Per image it reads `REQUEST`
and the encoded bytes, and writes `ANSWER` and its payload: size x size x 3 bytes of RGB, or why there is no image.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from contextlib import suppress
from typing import BinaryIO

from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image, square_of

REQUEST = struct.Struct(">IIQ")  # side of the square, most pixels of the image, bytes that follow
ANSWER = struct.Struct(">?I")  # whether it was decoded, bytes that follow
READY = b"ready\n"


def main(memory: int, seconds: float) -> None:
    """Answer until the pipe ends.

    Args:
        memory: bytes of address space beyond what the process has at its start; where the system can limit it.
        seconds: after which the process ends in the midst of an image, should nobody be left to kill it.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # the libraries' remarks about bad files go nowhere
        os.dup2(nothing, number)
    _limit(memory)
    _write(sink, READY)
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        size, max_pixels, length = REQUEST.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        _alarm(seconds)
        done, payload = _square(data, size, max_pixels)
        _alarm(0)
        del data
        _write(sink, ANSWER.pack(done, len(payload)) + payload)


def _square(data: bytes, size: int, max_pixels: int) -> tuple[bool, bytes]:
    try:
        return True, square_of(open_image(data, size, max_pixels), size).tobytes()
    except BrokenImage as error:
        return False, str(error).encode(errors="replace")
    except MemoryError:
        return False, b"cannot be decoded (MemoryError)"


def _limit(memory: int) -> None:
    with suppress(ImportError, OSError, ValueError):  # not on Windows; not above what the system allows
        import resource

        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, also within a library


def _write(sink: BinaryIO, data: bytes) -> None:
    try:
        sink.write(data)
        sink.flush()
    except BrokenPipeError:  # the service has ended
        sys.exit(0)
