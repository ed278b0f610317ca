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
    _lengths(data, groups, group, count, offsets)
    strings = np.zeros(int(offsets[-1]), np.uint8)
    _decode(data, groups, group, count, offsets, strings)
    return offsets, strings


@compiled
def _put(out, place, value):
    while value >= 128:
        out[place] = (value & 127) | 128
        value >>= 7
        place += 1
    out[place] = value
    return place + 1


@compiled
def _get(data, place, end):
    value, shift = 0, 0
    while place < end:
        byte = np.int64(data[place])
        if shift < 35:
            value |= (byte & 127) << shift
        shift += 7
        place += 1
        if byte < 128:
            break
    return value, place


@compiled
def _encode(offsets, data, group, out, groups):
    place = 0
    for i in range(len(offsets) - 1):
        begin, end = offsets[i], offsets[i + 1]
        shared = 0
        if i % group == 0:
            groups[i // group] = place
        else:
            before = offsets[i - 1]
            longest = min(end - begin, begin - before)
            while shared < longest and data[begin + shared] == data[before + shared]:
                shared += 1
            place = _put(out, place, shared)
        place = _put(out, place, end - begin - shared)
        out[place : place + end - begin - shared] = data[begin + shared : end]
        place += end - begin - shared
    groups[-1] = place
    return place


@compiled
def _entry(data, place, end, first, before):
    """Shared bytes and rest of one string, and where the rest begins, cut to what there is."""
    shared = 0
    if not first:
        shared, place = _get(data, place, end)
    rest, place = _get(data, place, end)
    return min(shared, before), min(rest, end - place), place


@compiled
def _lengths(data, groups, group, count, offsets):
    place, end, length = 0, 0, 0
    for i in range(count):
        if i % group == 0:
            place, end = groups[i // group], groups[i // group + 1]
        shared, rest, place = _entry(data, place, end, i % group == 0, length)
        length = shared + rest
        offsets[i + 1] = offsets[i] + length
        place += rest


@compiled
def _decode(data, groups, group, count, offsets, strings):
    place, end, length = 0, 0, 0
    for i in range(count):
        if i % group == 0:
            place, end = groups[i // group], groups[i // group + 1]
        shared, rest, place = _entry(data, place, end, i % group == 0, length)
        begin = offsets[i]
        for n in range(shared):
            strings[begin + n] = strings[offsets[i - 1] + n]
        for n in range(rest):
            strings[begin + shared + n] = data[place + n]
        length = shared + rest
        place += rest
