"""Frames of videos, by PyAV (the extra `video`): moments every few seconds, each as an image.

A frame is the first at or after its moment. Finding it costs decoding from the key frame before.
"""

from __future__ import annotations

import io
from pathlib import Path

from lexlip_data.errors import BrokenImage

MAX_MOMENTS = 10_000  # of a file; a day at one every ten seconds is 8,640


def moments(path: Path, every: float) -> list[float]:
    """Seconds into a video, from its start, `every` apart, to a tenth.

    Raises:
        BrokenImage: no video that can be read.
    """
    av = _library()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenImage("a file without moving images")
            stream = container.streams.video[0]
            length = container.duration / av.time_base if container.duration else 0.0
            if stream.duration and stream.time_base:
                length = float(stream.duration * stream.time_base)
            first = next(container.decode(stream), None)
    except BrokenImage:
        raise
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        raise BrokenImage(f"no video that can be read ({error})") from error
    if first is None:
        raise BrokenImage("a video without a frame")
    count = min(max(1, -(-int(length * 1000) // max(1, int(every * 1000)))), MAX_MOMENTS)
    return sorted({round(number * every, 1) for number in range(count)})


def frame_at(path: Path, seconds: float) -> bytes:
    """The frame at a moment as a JPEG; the last one where the video ends before.

    Raises:
        BrokenImage: no such frame can be read.
    """
    av = _library()
    frame = None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = stream.start_time or 0
            container.seek(int(seconds / stream.time_base) + start, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or float((frame.pts - start) * stream.time_base) >= seconds - 1e-3:
                    break
            if frame is None:
                raise BrokenImage(f"no frame at {seconds:.1f} s")
            out = io.BytesIO()
            image = frame.to_image()
            if frame.rotation:  # a telephone held upright
                image = image.rotate(frame.rotation, expand=True)
            image.save(out, "JPEG", quality=95)
            return out.getvalue()
    except BrokenImage:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise BrokenImage(f"no frame at {seconds:.1f} s ({error})") from error


def _library():
    try:
        import av
    except ImportError as error:
        raise BrokenImage("a video, which is read where PyAV is installed: pip install av") from error
    return av
