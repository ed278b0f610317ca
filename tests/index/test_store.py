"""Changes appear whole or not at all: killed writers, damaged files, two writers, readers of an old state."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from lexlip.index import DamagedIndex, Index, IndexBusy, IndexingError, SparseRows, add, build, delete, merge, store
from lexlip.index.store import transaction


def bags_of(ids, weight=0.5):
    return SparseRows.from_bags([{int(id) % 50: weight, 60: 0.25} for id in ids], ids)


def test_add_replaces_delete_removes_merge_keeps(tmp_path):
    assert build(tmp_path, [bags_of(range(100))]).added == 100
    change = add(tmp_path, [bags_of(range(90, 120), weight=1.0)])
    assert (change.added, change.replaced, change.documents, change.segments) == (30, 10, 120, 2)
    assert delete(tmp_path, [5, 95, 1000]).deleted == 2
    assert delete(tmp_path, [5, 95]).deleted == 0
    for _ in range(2):
        index = Index.open(tmp_path)
        assert len(index) == 118
        assert {hit.id for hit in index.search({60: 1.0}, 200)} == set(range(120)) - {5, 95}
        assert index.search({41: 1.0}, 200) == [(91, 1.0), (41, 0.5)]
        assert index.search({45: 1.0}, 200) == [(45, 0.5)]
        change = merge(tmp_path)
        assert (change.documents, change.segments) == (118, 1)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock", ".seg"]


def test_a_segment_that_loses_all_its_documents_is_dropped(tmp_path):
    build(tmp_path, [bags_of(range(10))])
    add(tmp_path, [bags_of(range(10), weight=1.0)])
    assert len(Index.open(tmp_path).segments) == 1
    delete(tmp_path, list(range(10)))
    assert len(Index.open(tmp_path)) == len(Index.open(tmp_path).segments) == 0


def test_merging_rounds_nothing_where_segments_share_a_codebook(tmp_path, rows, queries):
    build(tmp_path, [rows(20_000, 300, 16)])
    add(tmp_path, [rows(2000, 300, 16, seed=5, first_id=20_000)])
    index, bags = Index.open(tmp_path), queries(50, 300)
    assert np.array_equal(index.segments[0].impacts, index.segments[1].impacts)
    before = index.search_batch(bags, 100)
    merge(tmp_path)
    assert len(Index.open(tmp_path).segments) == 1
    assert Index.open(tmp_path).search_batch(bags, 100) == before


def test_weights_beyond_the_old_codebook_get_one_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    make = lambda begin, scale: SparseRows.from_bags(
        [{term: float(rng.random() * scale) for term in range(20)} for _ in range(200)], range(begin, begin + 200)
    )
    build(tmp_path, [make(0, 1.0)], impact_bits=6)
    add(tmp_path, [make(200, 8.0)])
    assert [round(segment.impacts.max()) for segment in Index.open(tmp_path).segments] == [1, 8]
    merge(tmp_path)
    assert round(Index.open(tmp_path).segments[0].impacts.max()) == 8


def test_a_reader_keeps_its_state(tmp_path):
    build(tmp_path, [bags_of(range(100))])
    old = Index.open(tmp_path)
    before = old.search({60: 1.0}, 200)
    add(tmp_path, [bags_of(range(100, 200))])
    delete(tmp_path, list(range(50)))
    merge(tmp_path)
    assert old.search({60: 1.0}, 200) == before and old.verify() == []
    assert len(Index.open(tmp_path)) == 150


def test_only_one_writer(tmp_path):
    build(tmp_path, [bags_of(range(3))])
    with transaction(tmp_path), pytest.raises(IndexBusy, match="another process is writing"):
        delete(tmp_path, [1])
    assert delete(tmp_path, [1]).deleted == 1


def test_build_never_takes_what_is_there(tmp_path):
    build(tmp_path / "index", [bags_of(range(3))])
    with pytest.raises(IndexingError, match="already holds an index"):
        build(tmp_path / "index", [bags_of(range(4))])
    assert build(tmp_path / "index", [bags_of(range(4))], overwrite=True).documents == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(IndexingError, match="holds thesis.txt"):
        build(tmp_path / "other", [bags_of(range(4))], overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    for change in (merge, lambda folder: add(folder, []), lambda folder: delete(folder, [1]), Index.open):
        with pytest.raises(IndexingError, match="holds no index"):
            change(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["thesis.tmp", "a.del", "0123456789ab.seg.runs", "0123456789AB.seg", "word.runs"])
def test_only_a_writers_own_files_are_removed(tmp_path, name):
    """Others that end alike keep a folder from becoming an index, and stay where they are in one that is."""
    folder, left_over = tmp_path / "index", "0123456789ab.tmp"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(IndexingError, match=f"holds {name}"):
        build(folder, [bags_of(range(3))])
    (folder / name).unlink()
    (folder / left_over).write_text("a killed writer's")
    build(folder, [bags_of(range(3))])
    assert not (folder / left_over).exists()
    (folder / name).write_text("mine")
    add(folder, [bags_of(range(3, 5))])
    assert (folder / name).read_text() == "mine"


def test_a_failed_change_leaves_the_state_and_no_files(tmp_path):
    build(tmp_path, [bags_of(range(3))])
    files = sorted(tmp_path.iterdir())

    def breaks():
        yield bags_of(range(3, 9))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        add(tmp_path, breaks())
    with pytest.raises(IndexingError, match="the ids of this index are int, not string"):
        delete(tmp_path, ["a"])
    assert sorted(tmp_path.iterdir()) == files and len(Index.open(tmp_path)) == 3


WRITER = """
import sys
import numpy as np
from lexlip.index import SparseRows, add, build, delete, merge
folder, action = sys.argv[1:]
rng = np.random.default_rng()
def rows(begin, count):
    terms = np.arange(count * 8) % 997
    offsets = np.arange(count + 1) * 8
    return SparseRows.from_arrays(np.arange(begin, begin + count), offsets, terms, rng.random(count * 8))
build(folder + "-warm", [rows(0, 10)], overwrite=True)
add(folder + "-warm", [rows(5, 10)])
merge(folder + "-warm")
print("ready", flush=True)
sys.stdin.readline()
while True:
    if action == "build":
        build(folder, (rows(n, 5000) for n in range(0, 40_000, 5000)), overwrite=True, segment_documents=15_000)
    elif action == "add":
        add(folder, (rows(n, 5000) for n in range(30_000, 60_000, 5000)))
    else:
        delete(folder, rng.integers(0, 40_000, 100))
        merge(folder)
"""


@pytest.mark.parametrize("call", [1, 2], ids=["before_the_rename", "after_it"])
def test_interrupted_while_publishing(tmp_path, monkeypatch, call):
    folder = tmp_path / "index"
    build(folder, [SparseRows.from_bags([{1: 0.5}] * 3, ids=["a", "b", "c"])])
    add(folder, [SparseRows.from_bags([{1: 0.5}], ids=["d"])])
    real, calls = store.sync_folder, []

    def sync(place):
        calls.append(place)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(place)

    monkeypatch.setattr(store, "sync_folder", sync)
    with pytest.raises(KeyboardInterrupt):
        merge(folder)
    monkeypatch.undo()
    assert len(Index.open(folder)) == 4
    assert len(list(folder.glob("*.seg"))) == (2 if call == 1 else 1)
    delete(folder, ["a"])
    assert len(Index.open(folder)) == 3


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_killed_at_any_moment(tmp_path):
    """20 writers, killed between 0 and 0.4 s into their work: the last published state opens, verifies, searches."""
    rng = random.Random(0)
    folder = tmp_path / "index"
    build(folder, [bags_of(range(1000))])
    generations, left_over = [], 0
    for number in range(20):
        action = ("build", "add", "merge")[number % 3]
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        writer.stdin.write("\n")
        writer.stdin.flush()
        time.sleep(rng.random() * 0.4)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        index = Index.open(folder)
        assert index.verify() == []
        assert len(index.search({3: 1.0}, 10)) == 10
        generations.append(index.manifest.generation)
        left_over += len(list(folder.iterdir())) - len(index.manifest.files()) - 2
    assert generations == sorted(generations) and generations[-1] > 5  # states were published in between
    assert left_over > 0  # and some writers were in the middle of something
    assert delete(folder, [-1]).deleted == 0  # the lock went with its holder; what they left behind is removed
    assert len(list(folder.iterdir())) == len(Index.open(folder).manifest.files()) + 2


def test_a_new_state_while_readers_open(tmp_path):
    """Opening never fails although each state's files are removed as soon as the next one is there."""
    import threading

    build(tmp_path, [bags_of(range(50))])
    stop = threading.Event()
    errors = []

    def read():
        while not stop.is_set():
            try:
                assert len(Index.open(tmp_path).search({60: 1.0}, 100)) == 50
            except Exception as error:
                errors.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        build(tmp_path, [bags_of(range(50))], overwrite=True)
    stop.set()
    reader.join()
    assert not errors


def test_a_flipped_byte_is_found_and_harmless(tmp_path, rows, queries, flip):
    """In any file at any place: opening or `verify` says so, and a search ends with a result or an error of its own."""
    rng = np.random.default_rng(0)
    names = [f"name {number}" for number in range(3000)]
    build(tmp_path / "index", [rows(3000, 60, 12, ids=names)])
    delete(tmp_path / "index", names[::9])
    manifest = Index.open(tmp_path / "index").manifest
    bags = queries(5, 60)
    found_by_verify = 0
    for file in ["manifest", *(entry.name for entry in manifest.files())]:
        size = (tmp_path / "index" / file).stat().st_size
        for place in {0, size - 1, *rng.integers(0, size, 120).tolist()}:
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "index", folder)
            flip(folder / file, place, int(rng.integers(1, 256)))
            try:
                index = Index.open(folder)
            except DamagedIndex as error:
                assert str(folder) in str(error)
                continue
            assert index.verify(), (file, place)
            found_by_verify += 1
            for bag in bags:
                with suppress(DamagedIndex):
                    hits = index.search(bag, 20)
                    assert len(hits) <= 20 and all(isinstance(hit.id, str) for hit in hits)
                    index.search(bag, 20, drop=0.4, candidates=30)
                    index.explain(bag, names[1]) if index.segments[0].ids.find(names[1]) is not None else None
    assert found_by_verify > 50


def test_postings_of_noise_are_harmless(tmp_path, rows, queries):
    """Not one flipped byte but all of them; also to a search that is told that they were looked at."""
    rng = np.random.default_rng(0)
    build(tmp_path, [rows(40_000, 60, 12)])
    index = Index.open(tmp_path)
    segment = index.segments[0]
    for seed in range(30):
        segment.data = rng.integers(0, 256, len(segment.data), dtype=np.uint8)
        if seed % 2:
            segment.data &= rng.integers(0, 256, len(segment.data), dtype=np.uint8)  # fewer ones: far documents
        segment.checked[:] = 0
        with pytest.raises(DamagedIndex, match="the list of term .* is damaged"):
            index.search({term: 1.0 for term in range(60)}, 50)
        segment.checked[:] = 1
        for bag in queries(20, 60, seed):
            assert all(0 <= hit.id < 40_000 for hit in index.search(bag, 50))
            index.search(bag, 10, drop=0.4, candidates=100)


def light_and_heavy(folder, documents=1 << 14):
    """Three light terms in every document; a heavy one takes the impacts far above theirs."""
    rng = np.random.default_rng(0)
    heavy = {number: {3: float(rng.uniform(0.3, 1))} for number in range(0, documents, 16)}
    build(folder, [SparseRows.from_bags([{0: 1e-3, 1: 1e-3, 2: 1e-3, **heavy.get(n, {})} for n in range(documents)])])
    return Index.open(folder)


def test_codes_above_the_highest_of_a_list_overflow_nothing(tmp_path):
    """Damaged bytes of a light list stand for heavy weights: sums stay in their range, later searches are right."""
    from lexlip.index import index as module
    from lexlip.index.layout import BEGIN, MAX_QUERY_TERMS, TOP
    from lexlip.index.scoring import LIMIT

    good, bad = light_and_heavy(tmp_path / "good"), light_and_heavy(tmp_path / "bad")
    segment = bad.segments[0]
    assert segment.impacts[-1] > 100 * segment.impacts[segment.table[1, TOP]]
    segment.data = segment.data.copy()
    begin = int(segment.table[1, BEGIN]) + 2000
    segment.data[begin : begin + 4000] ^= 0xFF
    with pytest.raises(DamagedIndex, match="the list of term 1 is damaged"):
        bad.search({1: 1.0}, 10)
    segment.checked[:] = 1
    wanted = good.search({3: 1.0}, 2000, threads=1)
    for query in ({0: 1e-4, 1: 1.0, 2: 1e-4}, {1: 1.0, 3: 0.1}, {1: 1.0}):
        found = [hit.id for hit in bad.search(query, 10, threads=1)]
        assert len(set(found)) == len(found) == 10
        above = module._scratch.sums.astype(np.int64) - module._scratch.floor[0]
        assert above.max() <= LIMIT + MAX_QUERY_TERMS and module._scratch.sums.min() >= 0
        assert good.search({3: 1.0}, 2000, threads=1) == wanted


def test_no_more_documents_of_a_block_are_noted_than_there_is_room_for(tmp_path):
    from lexlip.index.scoring import _accumulate, _open

    segment = light_and_heavy(tmp_path, 200).segments[0]
    lists = segment.table[:1]
    cursors, sums = np.zeros((2, 1, 6), np.int64), np.zeros(200, np.int32)
    _open(segment.data, lists, 0, segment.bits, True, cursors)
    room = np.full(200, -7)
    noted = _accumulate(
        segment.data, lists, segment.bits, segment.impacts, np.ones(1), 1e6, 0, 200, cursors, sums, np.int32(0), 1,
        room[:10],
    )  # fmt: skip
    assert noted == 10 and (room[10:] == -7).all() and (sums > 0).all()


@pytest.mark.parametrize("change", ["cut", "longer", "gone", "swapped"])
def test_other_files_are_refused(tmp_path, change):
    build(tmp_path, [bags_of(range(100))], segment_documents=60)
    one, other = (tmp_path / entry.name for entry in Index.open(tmp_path).manifest.files())
    if change == "cut":
        one.write_bytes(one.read_bytes()[:-1])
    elif change == "longer":
        one.write_bytes(one.read_bytes() + b"\0")
    elif change == "gone":
        one.unlink()
    else:
        one.write_bytes(other.read_bytes())
    with pytest.raises(DamagedIndex, match=one.name):
        Index.open(tmp_path)
