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


def decode(data: np.ndarray, groups: np.ndarray, group: int, count: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Groups to strings.

    Returns:
        (N + 1,) int64 offsets and uint8 bytes, and whether the strings ascend and were all in their groups. Damaged
        bytes give other strings, nothing else.
    """
    offsets = np.zeros(count + 1, np.int64)
    good = _decode(data, groups, group, offsets, np.empty(0, np.uint8), False)
    strings = np.zeros(int(offsets[-1]) if good else 0, np.uint8)
    return offsets, strings, good and _decode(data, groups, group, offsets, strings, True)


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
def _decode(data, groups, group, offsets, strings, fill):
    """Fill the offsets, and the strings if asked to; False at the first that is not what `_encode` writes."""
    position, end = 0, 0
    for i in range(len(offsets) - 1):
        begin, shared = offsets[i], 0
        before = offsets[max(i - 1, 0)]
        if i % group == 0:
            if i and position != end:
                return False
            position, end = groups[i // group], groups[i // group + 1]
        else:
            shared, position = _get_number(data, position, end)
            if shared > begin - before:
                return False
        rest, position = _get_number(data, position, end)
        if rest > end - position:
            return False
        offsets[i + 1] = begin + shared + rest
        if fill:
            for n in range(shared):
                strings[begin + n] = strings[before + n]
            for n in range(rest):
                strings[begin + shared + n] = data[position + n]
            if i and not _ascend(strings, before, begin, offsets[i + 1], shared):
                return False
        position += rest
    # The last group may be read in part only.
    return (len(offsets) - 1) % group != 0 or position == end


@compiled
def _ascend(strings, before, begin, end, shared):
    """Whether the string from `before` to `begin` is less than the one from there to `end`; they begin alike."""
    for n in range(shared, min(begin - before, end - begin)):
        if strings[before + n] != strings[begin + n]:
            return strings[before + n] < strings[begin + n]
    return begin - before < end - begin
