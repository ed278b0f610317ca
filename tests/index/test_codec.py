"""Packed lists come back as they went in; any bytes decode within bounds."""

import numpy as np
import pytest

from lexlip.index.codec import NO_DOCUMENT, decode, encode, find, room
from lexlip.index.layout import BEGIN, COLUMNS, COUNT, END, LOW, PADDING, SKIP_EVERY


def packed(lists, bits):
    """Postings section, table and skips of [(documents, codes)]; each code stands for the float16 of its number."""
    keys = np.concatenate(
        [documents.astype(np.uint64) << np.uint64(16) | codes.astype(np.uint64) for documents, codes in lists]
    )
    offsets = np.concatenate([[0], np.cumsum([len(documents) for documents, _ in lists])])
    out = np.zeros(room(len(keys), len(lists), bits), np.uint8)
    table = np.zeros((len(lists), COLUMNS), np.int64)
    skips = np.zeros((len(keys) // SKIP_EVERY + 1, 2), np.uint32)
    length, skipped = encode(keys, offsets, np.arange(1 << 16, dtype=np.uint16), bits, out, table, skips)
    assert length + PADDING <= len(out)
    return out[: length + PADDING], table, skips[:skipped]


def random_list(rng, count, documents, bits):
    return np.sort(rng.choice(documents, count, replace=False)), rng.integers(0, 1 << bits, count)


@pytest.mark.parametrize("bits", [1, 8, 9, 12])
def test_lists_come_back(bits):
    rng = np.random.default_rng(bits)
    lists = [random_list(rng, count, 50_000, bits) for count in (1, 2, 255, 256, 257, 512, 513, 5000, 50_000)]
    lists.append((np.array([2**25 - 1]), np.array([1])))
    lists.append((np.array([0, 2**25 - 1]), np.array([0, 1])))
    lists.append((np.append(np.arange(300), 2**25 - 1), np.ones(301, int)))
    data, table, skips = packed(lists, bits)
    for entry, (documents, codes) in zip(table, lists):
        found, found_codes = np.zeros(len(documents), np.int64), np.zeros(len(documents), np.int64)
        assert decode(data, entry, bits, found, found_codes) == len(documents)
        assert np.array_equal(found, documents) and np.array_equal(found_codes, codes)
        for place in {0, len(documents) - 1, *rng.integers(0, len(documents), 50).tolist()}:
            assert find(data, skips, entry, bits, documents[place]) == codes[place]
        missing = np.setdiff1d(rng.integers(0, 2**25, 50), documents)
        assert all(find(data, skips, entry, bits, document) == -1 for document in missing)


def test_size_is_near_the_entropy():
    """Random documents: at most 0.1 bits a posting above the entropy of which documents they are."""
    rng = np.random.default_rng(0)
    for ratio in (0.5, 0.1, 0.01, 0.003):
        documents = np.flatnonzero(rng.random(2_000_000) < ratio)
        data, table, _ = packed([(documents, np.zeros(len(documents), int))], 1)
        bits = 8 * len(data) / len(documents) - 1
        entropy = -(ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio)) / ratio
        assert bits < entropy + (0.1 if ratio < 0.2 else 0.6), ratio


def test_any_bytes_decode_within_bounds():
    """Documents rise, codes fit, and a list never has more postings than its table says."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        bits, low, count = (int(n) for n in (rng.integers(1, 13), rng.integers(0, 26), rng.integers(1, 400)))
        fields = (count * (low + bits) + 7) // 8
        entry = np.zeros(COLUMNS, np.int64)
        entry[[BEGIN, END, COUNT, LOW]] = 8, 8 + fields + (count + 7) // 8 + int(rng.integers(0, 50)), count, low
        data = rng.integers(0, 256, entry[END] + PADDING, dtype=np.uint8) & rng.integers(0, 256, dtype=np.uint8)
        documents, codes = np.full(count, -1), np.full(count, -1)
        number = decode(data, entry, bits, documents, codes)
        assert (np.diff(documents[:number]) > 0).all() and (documents[:number] >= 0).all()
        assert (documents[:number] < NO_DOCUMENT).all() and (codes[:number] < 1 << bits).all()
        skips = rng.integers(0, 2**32, (count // SKIP_EVERY + 1, 2), dtype=np.uint32)
        assert -1 <= find(data, skips, entry, bits, int(rng.integers(0, 1 << 25))) < 1 << bits
