"""Front coding of sorted strings, compiled; the layout is described in `lexlip.index.id_column`."""

from __future__ import annotations

import numpy as np

from lexlip.index.compiled import compiled


def encode(offsets: np.ndarray, data: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings to groups.

    Args:
        offsets: (N + 1,) int64; string i is data[offsets[i]:offsets[i + 1]].
        data: uint8.
        group: strings per group.

    Returns:
        (G + 1,) int64 where each group begins and the last one ends, and the uint8 bytes.
    """
    # No string grows by more than its two numbers, of at most 5 bytes for lengths below 2^35.
    out = np.empty(int(offsets[-1] - offsets[0]) + 10 * (len(offsets) - 1), np.uint8)
    groups = np.zeros((len(offsets) - 1 + group - 1) // group + 1, np.int64)
    return groups, out[: _encode(offsets, data, group, out, groups)].copy()


def decode(data: np.ndarray, groups: np.ndarray, group: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups to strings: (N + 1,) int64 offsets and uint8 bytes. Damaged bytes give other strings, nothing else."""
    offsets = np.zeros(count + 1, np.int64)
    _decode(data, groups, group, offsets, np.empty(0, np.uint8))
    strings = np.zeros(int(offsets[-1]), np.uint8)
    _decode(data, groups, group, offsets, strings)
    return offsets, strings


@compiled
def put_number(out, position, value):
    """Write a number in bytes of 7 bits, lowest first, the eighth bit set on all but the last; returns its end."""
    while value >= 128:
        out[position] = (value & 127) | 128
        value >>= 7
        position += 1
    out[position] = value
    return position + 1


@compiled
def _get_number(data, position, end):
    value, shift = 0, 0
    while position < end:
        byte = np.int64(data[position])
        if shift < 35:
            value |= (byte & 127) << shift
        shift += 7
        position += 1
        if byte < 128:
            break
    return value, position


@compiled
def _encode(offsets, data, group, out, groups):
    position = 0
    for i in range(len(offsets) - 1):
        begin, end = offsets[i], offsets[i + 1]
        shared = 0
        if i % group == 0:
            groups[i // group] = position
        else:
            before = offsets[i - 1]
            longest = min(end - begin, begin - before)
            while shared < longest and data[begin + shared] == data[before + shared]:
                shared += 1
            position = put_number(out, position, shared)
        position = put_number(out, position, end - begin - shared)
        out[position : position + end - begin - shared] = data[begin + shared : end]
        position += end - begin - shared
    groups[-1] = position
    return position


@compiled
def _decode(data, groups, group, offsets, strings):
    """Fill the offsets, and the strings unless they are empty. Lengths are cut to the bytes that there are."""
    position, end = 0, 0
    for i in range(len(offsets) - 1):
        begin, shared = offsets[i], 0
        if i % group == 0:
            position, end = groups[i // group], groups[i // group + 1]
        else:
            shared, position = _get_number(data, position, end)
            shared = min(shared, begin - offsets[i - 1])
        rest, position = _get_number(data, position, end)
        rest = min(rest, end - position)
        offsets[i + 1] = begin + shared + rest
        if len(strings):
            for n in range(shared):
                strings[begin + n] = strings[offsets[i - 1] + n]
            for n in range(rest):
                strings[begin + shared + n] = data[position + n]
        position += rest
