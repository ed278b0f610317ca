"""Ids in segments: every kind in, the same out, from document to id and back."""

import numpy as np
import pyarrow as pa
import pytest

from lexlip.index import Index, IndexingError, SparseRows, build
from lexlip.sparse import as_ids

WORDS = [
    "",
    "a",
    "a" * 300,
    "ab",
    "ä",
    "狗",
    "🐕",
    "z\n",
    "COCO_val2014_000000391895.jpg",
    "COCO_val2014_000000391896.jpg",
]


def column(tmp_path, ids):
    build(tmp_path, [SparseRows.from_bags([{1: 1.0}] * len(ids), ids)])
    (segment,) = Index.open(tmp_path).segments
    return segment


@pytest.mark.parametrize(
    "ids",
    [
        [7], [5, 6, 7], [3, 1, 2], [0, 255], [10, 10 + 256], [-(2**63), 2**63 - 1], [-5, 0, 70_000],
        list(range(1000, 0, -3)), ["one"], WORDS, [f"{n:03}.jpg" for n in range(100)], [str(n) for n in range(100)],
    ],
)  # fmt: skip
def test_every_id_is_found_again(tmp_path, ids):
    segment = column(tmp_path, ids)
    ordered = sorted(ids, key=lambda id: id.encode() if isinstance(id, str) else id)
    assert [segment.ids[document] for document in range(len(ids))] == ordered
    assert segment.ids.all().tolist() == ordered
    assert [segment.ids.find(id) for id in ordered] == list(range(len(ids)))
    others = ["A", "aa", "b", "\U0010ffff"] if isinstance(ids[0], str) else [-1, 4, 2**40]
    assert all(segment.ids.find(id) is None for id in others if id not in ids)


def test_numbers_that_follow_one_another_take_no_space(tmp_path):
    segment = column(tmp_path, np.random.default_rng(0).permutation(5000) - 17)
    assert segment.file.footer["sections"]["ids"][1] == 0
    assert segment.ids[0] == -17 and segment.ids[4999] == 4982


def test_shared_beginnings_are_stored_once(tmp_path):
    names = [f"COCO_train2014_{number:012}.jpg" for number in range(0, 50_000, 7)]
    segment = column(tmp_path, names)
    assert segment.file.footer["sections"]["ids"][1] < 0.5 * sum(map(len, names))


@pytest.mark.parametrize("arrow", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.uint16()])
def test_arrow_types(arrow):
    values = ["b", "a"] if not pa.types.is_integer(arrow) else [2, 1]
    assert as_ids(pa.array(values).cast(arrow)).tolist() == values


@pytest.mark.parametrize(
    "ids, message",
    [
        ([1, "a"], "all be"), ([1.5], "double"), ([2**64], "64 bits"), ([None, 1], "row 0 has no id"),
        (np.array([2**63], np.uint64), "does not fit"), ([b"a"], "binary"), ([True], "bool"),
    ],
)  # fmt: skip
def test_other_ids_are_refused(ids, message):
    with pytest.raises(IndexingError, match=message):
        as_ids(ids)


@pytest.mark.parametrize("ids", [["a", "\ud800"], np.array(["\udcff"])])
def test_half_a_surrogate_pair_is_no_id(ids):
    with pytest.raises(IndexingError, match=r"mine: id '\\ud.*' is no text"):
        SparseRows.from_arrays(ids, np.arange(len(ids) + 1), [1] * len(ids), [0.5] * len(ids), "mine")


def test_ids_unpack_to_sixteen_times_their_section_at_most(tmp_path):
    """What docs/INDEX.md says of the memory that string ids take; long beginnings in common come near it."""
    ids = [f"{'x' * 200}/{number:05d}" for number in range(1600)]
    segment = column(tmp_path, ids)
    packed = len(segment.file.section("ids"))
    assert 12 * packed < sum(map(len, ids)) <= 16 * packed
