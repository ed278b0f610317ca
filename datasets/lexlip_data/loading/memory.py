"""How a loader process treats memory that it frees."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 << 20  # bytes of a block that is still taken from freed memory; glibc's own limit


def keep_freed_memory() -> bool:
    """Let malloc reuse a freed image's memory rather than return it to the system and ask for it again.

    Each image otherwise costs the kernel as many page faults as it has pages, up to a third of a small image's
    whole time. A process then keeps its own peak, a few batches of images. Returns whether it was done: only glibc can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGEST), mallopt(_M_TRIM_THRESHOLD, 1 << 30)])
