"""How a term's postings are packed: gaps between documents as Rice codes in two streams, impacts beside the low bits.

A list of n postings with r low bits and b impact bits is

    fields   n x (r + b) bits    impact code, then the low r bits of the gap; packed from the lowest bit up
    unary    per posting as many zeros as the high part of its gap, then a one; begins at a whole byte

where the gap is the number of documents left out since the previous posting. With the r that makes a list shortest
this takes at most 0.1 bits a posting more than the entropy of random documents, about 0.45 less than Elias-Fano, and
as neither stream has to be parsed to find a position in the other, a processor decodes several postings at once.

Decoding is safe on any bytes: documents never decrease, codes stay below 2^b, and nothing outside [begin, end + 8)
is read, as long as the table of lists passed `lexlip.index.check`. `sound` is the check of a list's own bytes.
"""

from __future__ import annotations

import numpy as np

from lexlip.index.compiled import compiled, load_word, trailing_zeros
from lexlip.index.layout import BEGIN, COUNT, END, LOW, MAX_LOW_BITS, PADDING, SKIP_EVERY, SKIPS, TOP

NO_DOCUMENT = 1 << 60  # later than any


@compiled
def posting(data, begin, unary, end, low, bits, i, word, base, lows):
    """Decode posting i, given what is left after posting i - 1.

    Args:
        data: uint8, the section of postings.
        begin, unary, end: positions in it of the list's fields, of its unary part, and of its end.
        low, bits: r and b.
        word, base: unary bits not used yet, and the number of the first bit of their word.
        lows: sum of the low parts up to posting i - 1.

    Returns:
        (document, impact code, word, base, lows); NO_DOCUMENT where the bytes hold no such posting.
    """
    while word == 0:
        base += 64
        if unary + (base >> 3) >= end:
            return NO_DOCUMENT, 0, word, base, lows
        word = load_word(data, unary + (base >> 3))
    one = np.uint64(1)
    position = base + trailing_zeros(word)
    word &= word - one
    bit = i * (low + bits)
    field = load_word(data, begin + (bit >> 3)) >> np.uint64(bit & 7)
    code = np.int64(field & ((one << np.uint64(bits)) - one))
    lows += np.int64((field >> np.uint64(bits)) & ((one << np.uint64(low)) - one))
    # position - i zeros lie before this one: the sum of the high parts so far.
    return ((position - i) << low) + lows + i, code, word, base, lows


@compiled
def unary_begin(begin, count, low, bits):
    """Where a list's unary part begins."""
    return begin + ((count * (low + bits) + 7) >> 3)


@compiled
def decode(data, entry, bits, documents, codes):
    """Unpack a whole list.

    Args:
        data: uint8, the section of postings.
        entry: its row of the table of lists.
        documents, codes: int64, at least COUNT long; filled.

    Returns:
        How many postings there are, fewer than COUNT only in damaged bytes.
    """
    begin, end, count, low = entry[BEGIN], entry[END], entry[COUNT], entry[LOW]
    unary = unary_begin(begin, count, low, bits)
    word, base, lows = np.uint64(0), -64, 0
    for i in range(count):
        document, code, word, base, lows = posting(data, begin, unary, end, low, bits, i, word, base, lows)
        if document == NO_DOCUMENT:
            return i
        documents[i] = document
        codes[i] = code
    return count


@compiled
def sound(data, skips, entry, bits, documents):
    """Whether a list is what its row of the table and its skips say, of documents below `documents`."""
    begin, end, count, low = entry[BEGIN], entry[END], entry[COUNT], entry[LOW]
    unary = unary_begin(begin, count, low, bits)
    word, base, lows, top = np.uint64(0), np.int64(-64), np.int64(0), np.int64(0)
    for i in range(count):
        document, code, word, base, lows = posting(data, begin, unary, end, low, bits, i, word, base, lows)
        if document >= documents:
            return False
        top = max(top, code)
        if i and i % SKIP_EVERY == 0:
            skip = entry[SKIPS] + i // SKIP_EVERY - 1
            one = ((document - lows - i) >> low) + i
            if np.int64(skips[skip, 0]) != document or np.int64(skips[skip, 1]) != one:
                return False
    return top == entry[TOP]


@compiled
def first_unsound(data, skips, table, bits, documents, checked):
    """The first row of a table whose list is not `sound`, or -1; looks only where `checked` is not set, and sets it."""
    for row in range(len(table)):
        if not checked[row]:
            if not sound(data, skips, table[row], bits, documents):
                return row
            checked[row] = 1
    return -1


@compiled
def find(data, skips, entry, bits, target):
    """The impact code of one document, by the skips and then posting by posting; -1 where the list does not hold it."""
    begin, end, count, low, first = entry[BEGIN], entry[END], entry[COUNT], entry[LOW], entry[SKIPS]
    unary = unary_begin(begin, count, low, bits)
    left, right = 0, (count - 1) // SKIP_EVERY  # skip s > 0 stands at posting s * SKIP_EVERY, in row first + s - 1
    while left < right:
        middle = (left + right + 1) >> 1
        if np.int64(skips[first + middle - 1, 0]) <= target:
            left = middle
        else:
            right = middle - 1
    i, word, base, lows = np.int64(0), np.uint64(0), np.int64(-64), np.int64(0)
    if left:
        i = left * SKIP_EVERY
        position = np.int64(skips[first + left - 1, 1])
        base = position >> 6 << 6
        if unary + (base >> 3) >= end:
            return -1
        # From the skip's own bit on; its low parts are what its document leaves.
        word = load_word(data, unary + (base >> 3)) >> np.uint64(position & 63) << np.uint64(position & 63)
        bit = i * (low + bits)
        field = load_word(data, begin + (bit >> 3)) >> np.uint64(bit & 7) >> np.uint64(bits)
        own = np.int64(field & ((np.uint64(1) << np.uint64(low)) - np.uint64(1)))
        lows = np.int64(skips[first + left - 1, 0]) - i - ((position - i) << low) - own
    while i < count:
        document, code, word, base, lows = posting(data, begin, unary, end, low, bits, i, word, base, lows)
        if document >= target:
            return code if document == target else -1
        i += 1
    return -1


@compiled
def _low_bits(keys, first, last, shift):
    """The r with the shortest list, and that list's unary bits. keys: documents, shifted left."""
    count = last - first
    mean = (np.int64(keys[last - 1] >> shift) + 1) // count
    guess = 0
    while guess < MAX_LOW_BITS and (1 << (guess + 1)) <= mean:
        guess += 1
    best, best_bits, best_unary = 0, NO_DOCUMENT, 0
    for low in range(max(guess - 1, 0), min(guess + 1, MAX_LOW_BITS) + 1):
        unary, previous = count, np.int64(-1)
        for i in range(first, last):
            document = np.int64(keys[i] >> shift)
            unary += (document - previous - 1) >> low
            previous = document
        if unary + count * low < best_bits:
            best, best_bits, best_unary = low, unary + count * low, unary
    return best, best_unary


@compiled
def encode(keys, offsets, code_of, bits, out, table, skips):
    """Pack the lists of several terms one after another.

    Args:
        keys: uint64 postings, document << 16 | bits of the float16 weight; ascending and without repeats in each list.
        offsets: (L + 1,) where each list begins in `keys`; no list is empty.
        code_of: uint16, impact code of each float16.
        bits: b.
        out: uint8 zeros, long enough (`room`).
        table: (L, 6) int64; filled, with positions that count from the start of `out` and of `skips`.
        skips: (M, 2) uint32; filled.

    Returns:
        Bytes of `out` and rows of `skips` that were filled.
    """
    shift = np.uint64(16)
    position, skip = 0, 0
    for row in range(len(offsets) - 1):
        first, last = offsets[row], offsets[row + 1]
        count = last - first
        low, unary_bits = _low_bits(keys, first, last, shift)
        unary = unary_begin(position, count, low, bits)
        end = unary + ((unary_bits + 7) >> 3)
        table[row, BEGIN], table[row, END], table[row, COUNT] = position, end, count
        table[row, LOW], table[row, SKIPS] = low, skip
        top, previous, one = 0, np.int64(-1), 0
        for i in range(count):
            key = keys[first + i]
            document = np.int64(key >> shift)
            gap = document - previous - 1
            previous = document
            code = code_of[np.int64(key & np.uint64(0xFFFF))]
            top = max(top, np.int64(code))
            field = np.uint64(code) | (np.uint64(gap & ((1 << low) - 1)) << np.uint64(bits))
            bit = i * (low + bits)
            field <<= np.uint64(bit & 7)
            byte = position + (bit >> 3)
            while field:
                out[byte] |= np.uint8(field & np.uint64(0xFF))
                field >>= np.uint64(8)
                byte += 1
            one += gap >> low
            out[unary + (one >> 3)] |= np.uint8(1 << (one & 7))
            if i and i % SKIP_EVERY == 0:
                skips[skip, 0], skips[skip, 1] = document, one
                skip += 1
            one += 1
        table[row, TOP] = top
        position = end
    return position, skip


def room(postings: int, lists: int, bits: int) -> int:
    """Bytes that postings in lists can take at most, given the number of each.

    With r the logarithm of the mean gap, zeros and ones together are at most 3 a posting; the best r takes no more.
    """
    return (postings * (MAX_LOW_BITS + bits + 3) >> 3) + 2 * lists + PADDING
