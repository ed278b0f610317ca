"""How a loader's process treats memory that it frees."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 << 20  # bytes of a piece that is still taken from what was freed; glibc's own limit


def keep_freed_memory() -> bool:
    """Let malloc use a freed picture's memory again rather than give it back and ask for it anew.

    Each picture otherwise costs the kernel as many page faults as it has pages, up to a third of a small picture's
    whole time. A process keeps its own peak, a few batches of pictures.

    Returns:
        whether it was done: only glibc knows how.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGEST), mallopt(_M_TRIM_THRESHOLD, 1 << 30)])
