"""Other engines find what ours finds, up to ties and float32."""

import sys

import pytest

from lexlip.index import Index, IndexingError, SparseRows, add, build, delete
from lexlip.index.adapters import installed, open_engine
from lexlip.index.queries import bag_of
from lexlip.index.stored import stored_rows

DOCUMENTS, VOCABULARY = 10_000, 2000
EXACT = {"milvus": "vectors.db", "qdrant": "shard", "lexlip": "again"}
OPTIONS = {"lexlip": {"options": {"impact_bits": 10}}}  # two segments with 9 bits each, without rounding again


@pytest.fixture(scope="module")
def collections(tmp_path_factory, rows):
    """Our index by kind of ids, of two segments with some documents deleted."""
    folder = tmp_path_factory.mktemp("ours")
    made = {}
    for kind, name in (("int", lambda n: n - 5000), ("string", lambda n: f"photo {n}.jpg")):
        ids = [name(n) for n in range(DOCUMENTS)]
        everything = rows(DOCUMENTS, VOCABULARY, 25, seed=3, ids=ids, copies_ratio=0)
        build(folder / kind, [everything.between(0, 6000)])
        add(folder / kind, [everything.between(6000, DOCUMENTS)])
        delete(folder / kind, ids[::100])
        made[kind] = Index.open(folder / kind)
    return made


@pytest.fixture
def bags(queries):
    """Of distinct terms; the first is empty."""
    filled = [bag_of(query) for query in queries(120, VOCABULARY, seed=5) if len(query[0])]
    return [bag_of({}), *filled[:100]]


def same_up_to_ties(theirs, ours, all_ours):
    """Their scores are ours, place by place, and each of their documents has the score that we give it."""
    score_of = dict(all_ours)
    assert [hit.score for hit in theirs] == pytest.approx([hit.score for hit in ours], rel=1e-5)
    assert len({hit.id for hit in theirs}) == len(theirs)
    for hit in theirs:
        assert score_of[hit.id] == pytest.approx(hit.score, rel=1e-5)


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize("name", list(EXACT))
def test_exact_engines(name, kind, collections, bags, tmp_path):
    if name not in installed():
        pytest.skip(f"the {name} engine is not installed: pip install -e '.[{name}]'")
    index = collections[kind]
    check(open_engine(name, str(tmp_path / EXACT[name]), **OPTIONS.get(name, {})), index, bags)


def check(engine, index, bags):
    engine.build([SparseRows.from_bags([{1: 9.0}], ids=[index.search({1: 1.0})[0].id])])  # what is there goes
    engine.build(stored_rows(index))
    found = engine.search_batch(bags, 10)
    for bag, hits in zip(bags, found):
        same_up_to_ties(hits, index.search(bag, 10), index.search(bag, DOCUMENTS))
    assert engine.search(bags[1], 10) == found[1]
    assert engine.search(tuple(column.tolist() for column in bags[1]), 10) == found[1]
    if hasattr(engine, "close"):
        engine.close()


def test_a_qdrant_server(collections, bags):
    pytest.importorskip("qdrant_client", reason="the qdrant engine is not installed: pip install -e '.[qdrant]'")
    check(open_engine("qdrant", ":memory:"), collections["string"], bags[:10])


@pytest.mark.parametrize("name", ["milvus", "qdrant"])
def test_an_index_is_there_when_it_is_opened_again(name, collections, bags, tmp_path):
    if name not in installed():
        pytest.skip(f"the {name} engine is not installed: pip install -e '.[{name}]'")
    location = str(tmp_path / EXACT[name])
    engine = open_engine(name, location)
    engine.build(stored_rows(collections["int"]))
    before = engine.search_batch(bags, 5)
    engine.close()
    engine = open_engine(name, location)
    assert engine.search_batch(bags, 5) == before
    assert engine.bytes() > 100_000
    engine.close()


def test_seismic_finds_most(collections, bags, tmp_path):
    if "seismic" not in installed():
        pytest.skip("the seismic engine is not installed: pip install -e '.[seismic]'")
    for kind, index in collections.items():
        engine = open_engine("seismic", str(tmp_path / kind), heap_factor=0.0)
        engine.build(stored_rows(index))
        ours = [{hit.id for hit in index.search(bag, 10)} for bag in bags[1:]]
        found = [{hit.id for hit in hits} for hits in engine.search_batch(bags[1:], 10)]
        overlap = sum(len(a & b) for a, b in zip(ours, found)) / sum(map(len, ours))
        assert overlap > 0.9
        assert engine.bytes() > 100_000


@pytest.mark.parametrize("name", ["lexlip", "milvus", "qdrant", "seismic"])
def test_documents_without_terms_are_never_found(name, bags, tmp_path):
    if name not in installed():
        pytest.skip(f"the {name} engine is not installed: pip install -e '.[{name}]'")
    engine = open_engine(name, str(tmp_path / "new.db"))
    engine.build([SparseRows.from_bags([{}, {}])])
    assert engine.search_batch(bags[:5], 3) == [[]] * 5


def test_a_k_that_milvus_refuses(tmp_path):
    if "milvus" not in installed():
        pytest.skip("the milvus engine is not installed: pip install -e '.[milvus]'")
    engine = open_engine("milvus", str(tmp_path / "new.db"))
    with pytest.raises(IndexingError, match="k=100000: Milvus finds 1 to 16,384"):
        engine.search(([1], [1.0]), 100_000)


def test_qdrant_removes_nothing_but_its_own(tmp_path):
    if "qdrant" not in installed():
        pytest.skip("the qdrant engine is not installed: pip install -e '.[qdrant]'")
    file = tmp_path / "mine" / "segments" / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(IndexingError, match="is no shard of Qdrant"):
        open_engine("qdrant", str(tmp_path / "mine")).build([SparseRows.from_bags([{1: 1.0}])])
    assert file.exists()


@pytest.mark.parametrize("batch", [1, 100, 10**6])
def test_stored_rows_make_the_same_index(batch, rows, queries, tmp_path):
    build(tmp_path / "one", [rows(500, 60, 10)], impact_bits=6)
    index = Index.open(tmp_path / "one")
    build(tmp_path / "two", stored_rows(index, batch), impact_bits=6)
    again = Index.open(tmp_path / "two")
    for query in queries(50, 60):
        assert again.search(query, 20) == index.search(query, 20)


@pytest.mark.parametrize(
    ("name", "package"), [("milvus", "pymilvus"), ("qdrant", "qdrant_edge"), ("seismic", "seismic")]
)
def test_an_absent_package_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(IndexingError, match=rf"pip install -e '\.\[{name}\]'"):
        open_engine(name, str(tmp_path / "x.db"))


def test_unknown_engine(tmp_path):
    with pytest.raises(IndexingError, match="no engine 'faiss': one of lexlip"):
        open_engine("faiss", str(tmp_path))
