"""Many small additions: few segments stay, few files are open, and old indexes of many segments can be merged."""

import json
import subprocess
import sys
import zlib

import pytest

from lexlip.index import Index, IndexingError, SparseRows, add, build, delete, merge, writer


def one(id, weight=1.0):
    return SparseRows.from_bags([{1: weight, 2 + id % 5: 0.5}], [id])


def grown(folder, count):
    """As `count` additions of an earlier version left it."""
    build(folder, [SparseRows.concatenate([one(id) for id in range(count)])], segment_documents=1)
    value = json.loads((folder / "manifest").read_bytes().split(b"\n", 1)[1])
    value["settings"]["segment_documents"] = 1 << 22
    text = json.dumps(value).encode()
    (folder / "manifest").write_bytes(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(text) + text)


def test_additions_merge_the_smallest_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SEGMENTS", 6)
    build(tmp_path, [SparseRows.concatenate([one(id) for id in range(50)])])
    first = Index.open(tmp_path).manifest.segments[0].file.name
    for id in range(50, 70):
        assert add(tmp_path, [one(id)]).segments <= 6
    assert add(tmp_path, [one(55, weight=2.0)]).replaced == 1
    index = Index.open(tmp_path)
    assert first in {entry.file.name for entry in index.manifest.segments}  # a large one is left as it is
    assert sorted(hit.id for hit in index.search({1: 1.0}, 100)) == list(range(70))
    assert index.search({1: 1.0}, 1) == [(55, 2.0)] and index.verify() == []


def test_segments_are_merged_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_AT_ONCE", 3)
    grown(tmp_path, 20)
    before = Index.open(tmp_path).search({1: 1.0, 3: 0.3}, 30)
    together = []
    real = writer._merge_few
    monkeypatch.setattr(
        writer,
        "_merge_few",
        lambda work, settings, group, book: together.append(len(group)) or real(work, settings, group, book),
    )
    assert merge(tmp_path).segments == 1
    assert max(together) == 3 and len(together) > 7
    assert Index.open(tmp_path).search({1: 1.0, 3: 0.3}, 30) == before
    assert len(list(tmp_path.glob("*.seg"))) == 1


CODE = """
import resource, sys
import lexlip.index.runs, lexlip.index.scoring
from lexlip.index import Index, SparseRows, add, container, delete, merge
folder, container.READ_WHOLE = sys.argv[1], int(sys.argv[2])
import os; used = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 20
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
try:
    print(len(Index.open(folder).search({1: 1.0}, 100)))
except Exception as error:
    print(type(error).__name__, error)
delete(folder, [3])
print(merge(folder).segments, len(Index.open(folder).search({1: 1.0}, 100)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files")
@pytest.mark.parametrize("read_whole", [1 << 20, 0], ids=["read", "mapped"])
def test_more_segments_than_files_may_be_open(tmp_path, read_whole):
    grown(tmp_path, 40)
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), str(read_whole)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if read_whole or sys.version_info >= (3, 13):
        assert found[0] == "40"
    else:
        assert "more segments than files may be open; lexlip index merge, or a higher ulimit -n" in found[0]
    assert found[1] == "1 39"


def test_a_limit_of_documents_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SEGMENTS", 4)
    build(tmp_path, [SparseRows.concatenate([one(id) for id in range(12)])], segment_documents=2)
    assert add(tmp_path, [one(20)]).segments == 7  # no two of two documents fit
    assert add(tmp_path, [one(21)]).segments == 7
    delete(tmp_path, [20, 21])
    with pytest.raises(IndexingError, match="ids come in a list"):
        delete(tmp_path, "20")
