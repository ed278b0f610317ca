"""Lists and ids read by numpy and Python are those that the compiled functions read, damaged bytes included."""

import numpy as np
import pyarrow as pa
import pytest

from lexlip.index import Index, SparseRows, build, unpacked
from lexlip.index.codec import decode, sound
from lexlip.index.front_coding import decode as decode_strings
from lexlip.index.front_coding import encode
from lexlip.index.layout import BEGIN, COUNT, END


@pytest.mark.parametrize("bits", [1, 9, 12])
def test_a_list_is_taken_apart_or_refused_as_the_compiled_one(tmp_path, rows, bits):
    build(tmp_path, [rows(3000, 40, 12)], impact_bits=bits)
    (segment,) = Index.open(tmp_path).segments
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(400):
        entry = segment.table[rng.integers(len(segment.table))]
        data = segment.data.copy()
        if number % 4:
            place = rng.integers(entry[BEGIN], entry[END])
            data[place] = rng.integers(256)
        documents, codes = np.zeros(entry[COUNT], np.int64), np.zeros(entry[COUNT], np.int64)
        good = sound(data, segment.skips, entry, segment.bits, segment.documents)
        found = unpacked.unpack(data, segment.skips, entry, segment.bits, segment.documents)
        refused += not good
        assert (found is not None) == good
        if found is not None:
            assert decode(data, entry, segment.bits, documents, codes) == entry[COUNT]
            assert np.array_equal(found[0], documents) and np.array_equal(found[1], codes)
    assert 20 < refused < 300


def test_ids_are_read_or_refused_as_the_compiled_ones():
    rng = np.random.default_rng(1)
    names = sorted(
        {f"{rng.integers(30)}/{'ä' * int(rng.integers(3))}{rng.integers(10**6)}.jpg".encode() for _ in range(200)}
    )
    array = pa.array(names, pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[: len(names) + 1]
    groups, coded = encode(offsets, np.frombuffer(array.buffers()[2], np.uint8), 16)
    assert unpacked.strings(coded, groups, 16, len(names)) == names
    assert unpacked.strings(coded, groups[2:4], 16, 5) == names[32:37]
    refused = 0
    for number in range(2000):
        data = coded.copy()
        data[rng.integers(len(data))] = rng.integers(256)
        count = len(names) if number % 2 else int(rng.integers(1, len(names)))
        part = groups[: -(-count // 16) + 1]
        starts, strings, good = decode_strings(data, part, 16, count)
        found = unpacked.strings(data, part, 16, count)
        refused += not good
        assert (found is not None) == good
        if found is not None:
            assert found == [strings[a:b].tobytes() for a, b in zip(starts[:-1], starts[1:])]
    assert refused > 300


def test_a_process_goes_over_to_compiled_functions_once_it_has_spent_enough(tmp_path, rows, monkeypatch):
    build(tmp_path, [rows(500, 40, 12, ids=[f"{number}" for number in range(500)])])
    index = Index.open(tmp_path)
    monkeypatch.setattr(unpacked, "BUDGET", 200_000)
    monkeypatch.setattr(unpacked, "_spent", 0)
    best, searched = unpacked.best, []
    monkeypatch.setattr(unpacked, "best", lambda *given: searched.append(1) or best(*given))
    hits = [index.search({3: 1.0, 5: 0.5}, 5) for _ in range(40)]
    assert 0 < len(searched) < 20 and all(found == hits[0] for found in hits)
    monkeypatch.setattr(unpacked, "_spent", 0)
    unpacked.prefer_compiled()
    searched.clear()
    assert index.search({3: 1.0, 5: 0.5}, 5) == hits[0] and not searched


def test_no_rows_no_results(tmp_path):
    build(tmp_path, [SparseRows.from_bags([{}], ["a"])])
    assert Index.open(tmp_path).search({1: 1.0}) == []
