"""A clip that tests make: red, then green, then blue. Needs PyAV."""

import av
import numpy as np

COLOURS = [(220, 20, 20), (20, 200, 20), (20, 20, 220)]


def make_clip(path, codec="mpeg4"):
    """Six seconds at five frames a second, two of each colour."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            picture = np.full((48, 64, 3), COLOURS[number // 10], np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
