"""Thumbnails in terminals that can show images; nothing in others.

Which one it is, the environment says: asking the terminal itself would swallow what a person types meanwhile.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 4096  # bytes of base64 that kitty takes at a time
_COLOURS = 64  # of a sixel image


def image_protocol(environment: dict[str, str] | None = None) -> Callable[[Image | None], None] | None:
    """What prints an image in this terminal; None where nothing can, or standard output is no terminal.

    Args:
        environment: of the process, unless a test gives another; then standard output may be anything.
    """
    values = os.environ if environment is None else environment
    if environment is None and (sys.stdout is None or not sys.stdout.isatty()):
        return None
    if values.get("TMUX") or values.get("STY"):  # they pass none of it on as it is
        return None
    term, program = values.get("TERM", ""), values.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in values or term == "xterm-kitty" or program == "ghostty":
        code = kitty
    elif program in ("iTerm.app", "WezTerm") or values.get("LC_TERMINAL") == "iTerm2":
        code = iterm2
    elif "sixel" in term or term.startswith(("foot", "mlterm", "yaft", "contour")):
        code = sixel
    else:
        return None
    return lambda image: None if image is None else print(code(image))


def _png(image: Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def kitty(image: Image) -> str:
    """By kitty's graphics protocol."""
    data = _png(image)
    parts = [data[first : first + _CHUNK] for first in range(0, len(data), _CHUNK)]
    heads = ["a=T,f=100,", *[""] * (len(parts) - 1)]
    more = [1] * (len(parts) - 1) + [0]
    return "".join(f"\033_G{head}m={rest};{part}\033\\" for head, rest, part in zip(heads, more, parts))


def iterm2(image: Image) -> str:
    """By iTerm2's inline images."""
    return f"\033]1337;File=inline=1;width={image.width}px;height={image.height}px:{_png(image)}\a"


def sixel(image: Image) -> str:
    """As sixels: six rows at a time, colour by colour."""
    small = image.convert("RGB").quantize(_COLOURS)
    pixels = np.asarray(small)
    palette = np.array(small.getpalette(), int)[: 3 * _COLOURS].reshape(-1, 3) * 100 // 255
    out = ["\033Pq", *(f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(palette.tolist()))]
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        rows = []
        for colour in np.unique(band).tolist():
            codes = ((band == colour) * weights).sum(axis=0) + 63
            rows.append(f"#{colour}" + bytes(codes.astype(np.uint8)).decode())
        out.append("$".join(rows) + "-")
    return "".join(out) + "\033\\"
