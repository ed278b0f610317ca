"""What was pushed to an engine is found, explained and counted there as in the index that it came from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lexlip.errors import EngineError
from lexlip.index import Index, IndexingError, SparseRows, add, build, delete
from lexlip.index.lookup import TableModel
from lexlip.index.origin import ModelStamp, Origin
from lexlip.index.queries import bag_of
from lexlip.index.remote.calls import PUSHING
from lexlip.index.remote.index import EnginePlace
from lexlip.index.remote.push import push
from lexlip.index.remote.server import ENGINES as KNOWN
from lexlip.index.remote.server import Server
from lexlip.utils.options import ENGINES

DOCUMENTS, VOCABULARY = 600, 200
NAMES = {"int": lambda n: n - 300, "string": lambda n: f'süß "{n}" \\ {n}.jpg'}


@pytest.fixture(scope="module", params=list(NAMES))
def index(request, rows, tmp_path_factory):
    """Of two segments, some documents deleted."""
    folder = tmp_path_factory.mktemp("index") / request.param
    ids = [NAMES[request.param](n) for n in range(DOCUMENTS)]
    everything = rows(DOCUMENTS, VOCABULARY, 12, seed=3, ids=ids, copies_ratio=0, empty_ratio=0)
    build(folder, [everything.between(0, 400)])
    add(folder, [everything.between(400, DOCUMENTS)])
    delete(folder, ids[::50])
    return Index.open(folder)


@pytest.fixture
def pushed(engine, server, index):
    """The index and what an engine holds of it."""
    place = EnginePlace(server(engine))
    done = push(index, place._collection, workers=2)
    assert (done.sent, done.there_before, done.deleted, done.documents) == (len(index), 0, 0, len(index))
    yield index, place.open()
    place.close()


def same_up_to_ties(theirs, ours, all_ours):
    """Their scores are ours, place by place, and each of their documents has the score that we give it."""
    score_of = dict(all_ours)
    assert [hit.score for hit in theirs] == pytest.approx([hit.score for hit in ours], rel=1e-5, abs=1e-5)
    assert len({hit.id for hit in theirs}) == len(theirs)
    for hit in theirs:
        assert score_of[hit.id] == pytest.approx(hit.score, rel=1e-5, abs=1e-5)


def test_the_same_answers(pushed, queries):
    index, remote = pushed
    assert len(remote) == len(index) and remote.manifest.settings == index.manifest.settings
    bags = [bag_of(query) for query in queries(12, VOCABULARY, seed=5)]
    for bag in bags:
        same_up_to_ties(remote.search(bag, 10), index.search(bag, 10), index.search(bag, DOCUMENTS))
    same_up_to_ties(remote.search({1: 900.0, 2: 1e-3}, 5), *[index.search({1: 900.0, 2: 1e-3}, k) for k in (5, 999)])
    assert remote.search({}, 3) == []
    assert remote.search_batch(bags, 10) == [remote.search(bag, 10) for bag in bags]
    for options in (
        {"without": {1: 0.0, 3: 1.0}}, {"required": {2: 0.5}}, {"penalties": {1: 5.0, 4: 0.1}},
        {"ids": lambda id: str(id)[-1:] in "37g" and "7" in str(id)},
        {"without": {0: 0.2}, "required": {1: 0.0}, "penalties": {2: 1.5}, "drop": 0.1},
    ):  # fmt: skip
        bag = {0: 1.0, 1: 0.5, 2: 0.8, 7: 1.2}
        exact = {**options, "drop": 0.0}
        same_up_to_ties(
            remote.search(bag, 9, **options), index.search(bag, 9, **exact), index.search(bag, DOCUMENTS, **exact)
        )
    best = [hit.id for hit in index.search({1: 1.0, 2: 0.3, 5: 1.1}, 4)]
    for id in best:
        assert remote.explain({1: 1.0, 2: 0.3, 5: 1.1}, id) == index.explain({1: 1.0, 2: 0.3, 5: 1.1}, id)
        assert remote.holds(id)
    for theirs, ours in zip(remote.document_terms(best, 3), index.document_terms(best, 3)):
        assert np.array_equal(theirs[0], ours[0]) and np.array_equal(theirs[1], ours[1])
    for theirs, ours in zip(remote.document_frequencies(), index.document_frequencies()):
        assert np.array_equal(theirs, ours)
    encoded = []
    remote.model = SimpleNamespace(
        encode_text=lambda texts: encoded.append(texts) or np.eye(VOCABULARY)[[*map(len, texts)]]
    )
    alone = [remote.search({term: 1.0}, 3) for term in (3, 2, 1)]
    assert remote.search_batch(["dog", {2: 1.0}, "a"], 3) == alone and encoded == [["a", "dog"]]  # together


def test_what_is_not_there(pushed):
    index, remote = pushed
    gone = NAMES[index.manifest.settings.ids](0)
    other = 7 if isinstance(gone, str) else "7"
    for id in (gone, other):
        assert not remote.holds(id)
        with pytest.raises(IndexingError, match="no document has the id"):
            remote.explain({1: 1.0}, id)
    with pytest.raises(IndexingError, match="k=0: "):
        remote.search({1: 1.0}, 0)
    with pytest.raises(IndexingError, match="drop=1"):
        remote.search({1: 1.0}, drop=1)


def test_a_new_state_costs_its_new_segments(engine, server, rows, tmp_path):
    build(tmp_path / "index", [rows(50, 30, 8, empty_ratio=0)])
    place = EnginePlace(server(engine))
    collection = place._collection
    assert push(Index.open(tmp_path / "index"), collection).sent == 50
    first = place.stamp()
    assert push(Index.open(tmp_path / "index"), collection).sent == 0  # nothing is new
    add(tmp_path / "index", [rows(10, 30, 8, seed=2, first_id=45, empty_ratio=0)])  # five of them replace others
    delete(tmp_path / "index", [3, 4])
    state = Index.open(tmp_path / "index")
    done = push(state, collection)
    assert (done.sent, done.there_before, done.deleted, done.documents) == (10, 50, 2, 53)
    assert place.stamp() != first
    remote = place.open()
    for query in ({1: 1.0, 2: 0.5}, {0: 1.0, 7: 0.1}):
        same_up_to_ties(remote.search(query, 100), state.search(query, 100), state.search(query, 100))
    done = push(state, collection)
    assert (done.sent, done.there_before, done.documents) == (0, 60, 53)
    build(tmp_path / "index", [rows(20, 30, 8, seed=9, empty_ratio=0)], overwrite=True)
    assert push(Index.open(tmp_path / "index"), collection).documents == 20
    assert push(Index.open(tmp_path / "index"), collection, overwrite=True).sent == 20
    place.close()


def stamped(folder, fingerprint, ids=None):
    rows = SparseRows.from_bags([{1: 1.0}, {2: 1.0}], ids=ids or [0, 1])
    build(folder, [replace(rows, origin=Origin(ModelStamp("a model", "", fingerprint)))])
    return Index.open(folder)


def test_the_models_stamp_travels_along(server, tmp_path):
    place = EnginePlace(server("qdrant"))
    push(stamped(tmp_path / "one", "11" * 16), place._collection)
    assert place.manifest().model == ModelStamp("a model", "", "11" * 16)
    with pytest.raises(IndexingError, match="has vectors of a model \\(11111111\\), .* of a model \\(22222222\\)"):
        push(stamped(tmp_path / "two", "22" * 16), place._collection)
    with pytest.raises(IndexingError, match="ids of the kind int, .* of the kind string: --overwrite"):
        push(stamped(tmp_path / "three", "11" * 16, ["a", "b"]), place._collection)

    other = object.__new__(TableModel)
    other.folder, other.fingerprint, other.tokenizer = "other", "33" * 16, None
    with pytest.raises(IndexingError, match="its vectors were made by a model \\(11111111\\), not by"):
        place.open(other)
    assert len(place.open(other, force=True)) == 2
    push(stamped(tmp_path / "four", "22" * 16), place._collection, overwrite=True)
    assert place.manifest().model.fingerprint == "22" * 16
    place.close()


def test_only_what_lexlip_pushed_is_touched(server, engine, tmp_path):
    collection = server(engine).collection(PUSHING)
    collection.create("int", None)
    with pytest.raises(EngineError, match="exists and was not made by lexlip index push"):
        push(stamped(tmp_path / "one", "11"), collection, overwrite=True)
    assert collection.exists()
    collection.close()


def test_nothing_there_yet(server, engine):
    place = EnginePlace(server(engine))
    with pytest.raises(EngineError, match="nothing was pushed there; lexlip index push"):
        place.open()
    place.close()


def test_a_folder_of_qdrant_and_a_file_of_milvus_keep_what_was_pushed(tmp_path):
    index = stamped(tmp_path / "index", "11", ["süß 'a\"", "b"])
    for engine, file in (("qdrant", "folder"), ("milvus", "file.db")):
        pytest.importorskip({"qdrant": "qdrant_client", "milvus": "milvus_lite"}[engine])
        server = Server(engine, str(tmp_path / file))
        collection = server.collection(PUSHING)
        push(index, collection)
        collection.close()
        place = EnginePlace(server)
        assert place.open().search({1: 1.0}) == index.search({1: 1.0})
        place.close()


def test_options_name_the_engines_that_there_are():
    assert tuple(KNOWN) == ENGINES


def test_conditions_that_need_more_than_an_engine_gives(server, rows, tmp_path):
    build(tmp_path / "index", [rows(300, 5, 4, empty_ratio=0)])
    place = EnginePlace(server("qdrant"))
    push(Index.open(tmp_path / "index"), place._collection)
    place._collection.max_k = 250
    with pytest.raises(IndexingError, match="only 0 of the best 250 documents fulfil the conditions"):
        place.open().search({0: 1.0, 1: 1.0, 2: 1.0}, 3, ids=lambda id: False)
    with pytest.raises(IndexingError, match="k=251: .* finds at most 250"):
        place.open().search({0: 1.0}, 251)
    place.close()
