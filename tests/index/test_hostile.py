"""Files with right checksums and contents that nobody would write: each thing that decoding relies on, by hand."""

import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from lexlip.index import DamagedIndex, Index, IndexingError, SparseRows, add, build, delete, merge
from lexlip.index.index import damage_of
from lexlip.index.stored import stored_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from index_files import COLUMNS, read_container, write_container


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Indexes of 600 documents, with numbers and with names as ids."""
    rng = np.random.default_rng(0)
    folders = {}
    for kind in ("numbers", "names"):
        ids = [7 * n if kind == "numbers" else f"p/{n:04}.jpg" for n in range(600)]
        bags = [{int(t): float(rng.random() + 0.01) for t in rng.zipf(1.4, 8) if t < 40} for _ in ids]
        folders[kind] = tmp_path_factory.mktemp(kind) / "index"
        build(folders[kind], [SparseRows.from_bags(bags, ids)], impact_bits=5)
    return folders


@pytest.fixture
def hostile(tmp_path, good):
    """A copy with changed footer and sections, its checksums right."""

    def make(kind, change):
        import shutil

        folder = tmp_path / "index"
        shutil.copytree(good[kind], folder)
        path = next(folder.glob("*.seg"))
        footer, sections = read_container(path)
        footer.pop("sections")
        change(footer, sections)
        write_container(path, footer, sections, {})
        content = path.read_bytes()
        facts = {"bytes": len(content), "crc32": zlib.crc32(content)}
        rewrite(folder, lambda value: value["segments"][0]["file"].update(facts))
        return folder

    return make


def rewrite(folder, change):
    value = json.loads((folder / "manifest").read_bytes().split(b"\n", 1)[1])
    change(value)
    text = json.dumps(value).encode()
    (folder / "manifest").write_bytes(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(text) + text)


def column(name, change):
    """A change of a column of the lists."""

    def of(footer, sections):
        data, begin, parts = zlib.decompress(sections["lists"]), 0, {}
        for other, dtype in COLUMNS:
            parts[other] = np.frombuffer(data, dtype, footer["lists"], begin).copy()
            begin += parts[other].nbytes
        change(parts[name])
        sections["lists"] = zlib.compress(b"".join(part.tobytes() for part in parts.values()))

    return of


def numbers(name, dtype, place, value):
    def of(footer, sections):
        array = np.frombuffer(sections[name], dtype).copy()
        array[place] = value
        sections[name] = array.tobytes()

    return of


def fact(value, *keys):
    def of(footer, sections):
        for key in keys[:-1]:
            footer = footer[key]
        footer[keys[-1]] = value

    return of


def put(place, value):
    return lambda array: array.__setitem__(place, value)


def bomb(footer, sections):
    sections["lists"] = zlib.compress(zlib.decompress(sections["lists"]) + bytes(64 << 20))


CASES = {
    "terms that do not ascend": ("numbers", column("gap", put(3, 0)), "terms do not ascend"),
    "a term too high": ("numbers", column("gap", put(3, 2**32 - 1)), "a term above"),
    "more postings than documents": ("numbers", column("count", put(0, 601)), "lists do not fit"),
    "a list without postings": ("numbers", column("count", put(0, 0)), "lists do not fit"),
    "bytes beyond the postings": ("numbers", column("bytes", put(0, 2**32 - 1)), "lists do not fit"),
    "wide gaps": ("numbers", column("low", put(0, 26)), "lists do not fit"),
    "a code too high": ("numbers", column("top", put(0, 32)), "lists do not fit"),
    "a bomb": ("numbers", bomb, "another length"),
    "a negative number of lists": ("numbers", fact(-1, "lists"), "lists is -1"),
    "many lists": ("numbers", fact(10**9, "lists"), "do not fit its postings"),
    "bits of a bool": ("numbers", fact(True, "impact_bits"), "impact_bits is True"),
    "no bits": ("numbers", fact(0, "impact_bits"), "impact_bits is 0"),
    "documents as a float": ("numbers", fact(600.0, "documents"), "documents is 600.0"),
    "fewer documents": ("numbers", fact(599, "documents"), "599 documents, not 600"),
    "other postings": ("numbers", fact(1, "postings"), "number of postings"),
    "an error that is no number": ("numbers", fact(float("nan"), "impact_error"), "impact_error is nan"),
    "impacts of nothing": ("numbers", numbers("impacts", "<f2", slice(None), 0), "no codebook"),
    "impacts that fall": ("numbers", numbers("impacts", "<f2", 0, 9), "no codebook"),
    "impacts without end": ("numbers", numbers("impacts", "<f2", -1, np.inf), "no codebook"),
    "endless occurrences": ("numbers", numbers("occurrences", "<u8", 0, 2**64 - 1), "occurrences"),
    "no skips": ("numbers", lambda footer, sections: sections.pop("skips"), "no section skips"),
    "ids of a huge width": ("numbers", fact(10**9, "ids", "width"), "width is 1000000000"),
    "ids from beyond": ("numbers", fact(10**400, "ids", "first"), "first is"),
    "ids cut short": ("numbers", lambda footer, sections: sections.update(ids=sections["ids"][:99]), "ids are damaged"),
    "ids of another kind": ("numbers", fact("string", "ids", "kind"), "kind is 'string'"),
    "a group of none": ("names", fact(0, "ids", "group"), "group is 0"),
    "groups backwards": ("names", numbers("id_groups", "<u8", 2, 2**63), "ids are damaged"),
    "groups that end early": ("names", numbers("id_groups", "<u8", -1, 3), "ids are damaged"),
    "no groups": ("names", lambda footer, sections: sections.update(id_groups=b""), "ids are damaged"),
}


def operations(folder, kind):
    query = {term: 1.0 for term in range(40)}
    yield "search", lambda: Index.open(folder).search(query, 600)
    yield "explain", lambda: Index.open(folder).explain(query, 7 if kind == "numbers" else "p/0000.jpg")
    yield "info", lambda: Index.open(folder).info()
    yield "stored", lambda: list(stored_rows(Index.open(folder)))
    yield "delete", lambda: delete(folder, [7 if kind == "numbers" else "p/0000.jpg"])
    yield "add", lambda: add(folder, [SparseRows.from_bags([{1: 1.0}], [5 if kind == "numbers" else "new"])])
    yield "merge", lambda: merge(folder)


@pytest.mark.parametrize("case", CASES)
def test_what_decoding_relies_on_is_checked_when_opened(hostile, case):
    kind, change, message = CASES[case]
    folder = hostile(kind, change)
    assert message in " ".join(damage_of(folder))
    for _, call in operations(folder, kind):
        with pytest.raises(DamagedIndex, match=str(folder)):
            call()


@pytest.mark.parametrize(
    "kind, change, told",
    [
        ("numbers", lambda f, s: s.update(postings=b"\xff" * len(s["postings"])), {"search", "stored"}),
        ("numbers", numbers("skips", "<u4", 0, 5), {"search", "stored"}),
        ("numbers", lambda f, s: s.update(ids=s["ids"][::-1]), {"delete", "stored"}),
        ("names", lambda f, s: s.update(ids=s["ids"].replace(b"jpg", b"\xff\xfe\xfd")), {"search", "delete", "stored"}),
        ("names", lambda f, s: s.update(ids=b"\xff" * len(s["ids"])), {"search", "delete", "stored"}),
    ],
)
def test_what_is_read_later_is_checked_on_its_first_use(hostile, kind, change, told):
    folder = hostile(kind, change)
    assert len(damage_of(folder)) == 1
    for name, call in operations(folder, kind):
        if name in told:
            with pytest.raises(DamagedIndex, match=str(folder)):
                call()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda value: value["segments"][0]["file"].update(name="../index.seg"), "no name of a file"),
        (lambda value: value["segments"].append(value["segments"][0]), "belongs to two segments"),
        (lambda value: value["segments"][0].update(deleted=3), "but not which"),
        (lambda value: value["segments"][0].update(documents=10**15), "documents is"),
        (lambda value: value["settings"].update(impact_scale=[]), "impact_scale is"),
        (lambda value: value.update(generation="1"), "generation is '1'"),
        (lambda value: value.update(segments={}), "no list of objects"),
        (lambda value: value.update(model={"name": 3}), "name is 3"),
        (lambda value: value["segments"][0].update(sources=[4]), "a source that is not there"),
        (lambda value: value.pop("settings"), "settings is None"),
    ],
)
def test_a_manifest_is_checked(hostile, change, message):
    folder = hostile("numbers", lambda footer, sections: None)
    rewrite(folder, change)
    with pytest.raises(DamagedIndex, match=message):
        Index.open(folder)
    with pytest.raises(DamagedIndex, match=message):
        merge(folder)


def test_a_manifest_of_deep_json(hostile):
    folder = hostile("numbers", lambda footer, sections: None)
    text = b"[" * 100_000
    (folder / "manifest").write_bytes(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(text) + text)
    with pytest.raises(DamagedIndex, match="no JSON"):
        Index.open(folder)


@pytest.mark.skipif(os.name != "posix", reason="pipes in the file system")
@pytest.mark.parametrize("name", ["manifest", "segment"])
def test_a_pipe_is_not_waited_for(hostile, name):
    folder = hostile("numbers", lambda footer, sections: None)
    path = folder / "manifest" if name == "manifest" else next(folder.glob("*.seg"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedIndex, match="no plain file"):
        Index.open(folder)


def test_an_id_in_two_segments_is_not_merged(tmp_path):
    build(tmp_path, [SparseRows.from_bags([{1: 1.0}] * 4, [1, 2, 3, 4])])
    add(tmp_path, [SparseRows.from_bags([{1: 1.0}], [2])])
    rewrite(tmp_path, lambda value: value["segments"][0].update(deleted=0, deletions=None))
    with pytest.raises(DamagedIndex, match="id 2 is in two segments"):
        merge(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be cut elsewhere")
def test_a_file_that_is_cut_while_it_is_mapped(tmp_path, monkeypatch):
    """To read what is gone would end the process."""
    from lexlip.index import container

    monkeypatch.setattr(container, "READ_WHOLE", 100)
    monkeypatch.setattr(container, "WATCH_SECONDS", 0)
    build(tmp_path, [SparseRows.from_bags([{n % 50: 1.0} for n in range(5000)])])
    index = Index.open(tmp_path)
    assert len(index.search({1: 1.0}, 5)) == 5
    os.truncate(next(tmp_path.glob("*.seg")), 10)
    for call in (lambda: index.search({2: 1.0}, 5), index.verify, lambda: index.explain({2: 1.0}, 2)):
        with pytest.raises(DamagedIndex, match="has 10 bytes instead of"):
            call()


def test_a_version_to_come_is_no_damage(hostile):
    with pytest.raises(IndexingError, match="of format 2"):
        Index.open(hostile("numbers", fact(2, "version")))


def test_a_segment_of_documents_without_terms_is_bounded(tmp_path, monkeypatch):
    from lexlip.index import check, segment, writer

    for module in (check, segment, writer):
        monkeypatch.setattr(module, "MAX_EMPTY", 100)
    assert build(tmp_path, [SparseRows.from_bags([{}] * 260)]).segments > 2
    assert len(Index.open(tmp_path)) == 260
    with pytest.raises(IndexingError, match="have no term"):
        merge(tmp_path)
