"""numba, and the two machine operations that the packed lists need and numba does not offer.

Functions are compiled when first called (some ten seconds for all of them) and kept beside their source or in the
user's cache folder, so that later processes load them in a fraction of a second. They release the interpreter's lock:
threads search in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def compiled(function: Callable) -> Callable:
    """Compile for any argument types, without the interpreter's lock, and keep the result where that is possible."""
    try:
        dispatcher: Any = numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(function, nogil=True)
    if not hasattr(dispatcher, "_cache"):  # NUMBA_DISABLE_JIT
        return dispatcher
    save = dispatcher._cache.save_overload

    def save_if_possible(*overload) -> None:
        with suppress(OSError):  # a full disk: numba would give up a function that it has compiled
            save(*overload)

    dispatcher._cache.save_overload = save_if_possible
    return dispatcher


@intrinsic
def trailing_zeros(typing_context, word):
    """Place of the lowest set bit of a uint64 that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def load_word(typing_context, data, position):
    """The 8 bytes from `data[position]` on as a uint64, lowest byte first. Nothing checks that they are there."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        word = builder.load(address)
        word.align = 1
        return word

    return types.uint64(data, types.int64), generate
