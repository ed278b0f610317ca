"""The process that decodes: it may be killed at any moment, and nothing but one image is lost.

Started by `lexlip.serve.decode`. It loads no torch, so it takes 50 MB and half a second. Per image it reads `REQUEST`
and the encoded bytes, or the path of a video, and writes `ANSWER` and its payload: `SIZE` and the bytes of RGB, a JPEG,
or why there is no image.
"""

from __future__ import annotations

import io
import math
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image, square_of

REQUEST = struct.Struct(">IIIdQ")  # sides of the square and of the JPEG, 0: none; most pixels; second or -1; bytes
SIZE = struct.Struct(">II")  # width and height
MOST_PIXELS = 1 << 22  # of an answer: twelve megabytes, and more than any tower looks at
ANSWER = struct.Struct(">?I")  # whether it was decoded, bytes that follow
READY = b"ready\n"
QUALITY = 85  # of a JPEG


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
        size, fit, max_pixels, seconds_in, length = REQUEST.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        _alarm(seconds)
        done, payload = _answer(data, size, fit, max_pixels, seconds_in)
        _alarm(0)
        del data
        _write(sink, ANSWER.pack(done, len(payload)) + payload)


def _answer(data: bytes, size: int, fit: int, max_pixels: int, seconds_in: float) -> tuple[bool, bytes]:
    try:
        if seconds_in >= 0:  # the bytes are the path of a video
            from lexlip.sync.video import frame_at

            data = frame_at(Path(os.fsdecode(data)), seconds_in)
        if fit:
            return True, _jpeg(open_image(data, max(1, fit // 2), max_pixels), fit)
        image = open_image(data, size, max_pixels)
        if size:
            image = square_of(image, size)
        elif (times := image.width * image.height / MOST_PIXELS) > 1:
            image = image.reduce(math.ceil(times**0.5))
        return True, SIZE.pack(*image.size) + image.tobytes()
    except BrokenImage as error:
        return False, str(error).encode(errors="replace")
    except MemoryError:
        return False, b"cannot be decoded (MemoryError)"


def _jpeg(image: Image.Image, side: int) -> bytes:
    """At most so many pixels on the shorter side, twice as many on the longer; nothing of the file's but its pixels."""
    scale = min(1.0, side / min(image.size), 2 * side / max(image.size))
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    clean, out = Image.new("RGB", image.size), io.BytesIO()
    clean.paste(image)
    clean.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


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
