"""The service over an engine elsewhere: the answers of the index that was pushed there."""

import time
from dataclasses import replace

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx"):
    pytest.importorskip(module, reason="needs the extra serve, and dev")
pytest.importorskip("qdrant_client", reason="needs the extra qdrant")

from fastapi.testclient import TestClient  # noqa: E402

from lexlip.cli import main  # noqa: E402
from lexlip.errors import EngineError  # noqa: E402
from lexlip.index import Index, IndexingError, SparseRows, add, build  # noqa: E402
from lexlip.index.origin import ModelStamp, Origin  # noqa: E402
from lexlip.index.remote.index import EnginePlace  # noqa: E402
from lexlip.index.remote.push import push  # noqa: E402
from lexlip.index.remote.server import Server  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.limits import Limits  # noqa: E402

LIMITS = Limits(max_k=20, reload_seconds=0.05)


@pytest.fixture
def place(index_folder):
    made = EnginePlace(Server("qdrant", ":memory:"))
    push(Index.open(index_folder), made._collection)
    yield made
    made.close()


def close(one, other):
    """The same, numbers up to float32."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, rel=1e-5) if isinstance(one, float) else other)


def test_answers_are_those_of_the_index(index_folder, place, model):
    words = [model.tokenizer.convert_ids_to_tokens(term) for term in range(40)]
    word = next(word for word in words if word.isalnum())
    asked = [
        ("/search", {"text": "red dot", "k": 5, "hit_words": 3}), ("/search", {"terms": {"5": 0.5, "7": 2}, "k": 20}),
        ("/search", {"terms": {"5": 0.5, "7": 2}, "without": {word: 0.2}, "penalties": {words[7]: 0.3}}),
        ("/explain", {"terms": {"5": 0.5, "7": 2}, "id": "photo 7"}), ("/explain", {"text": "a", "id": "none"}),
        ("/search", {"text": "red", "k": 21}), ("/search", {"terms": {}}),
    ]  # fmt: skip
    with TestClient(create_app(index_folder, model, LIMITS)) as here:
        with TestClient(create_app(place, model, LIMITS)) as there:
            for path, body in asked:
                mine, theirs = (client.post(path, json=body) for client in (here, there))
                assert theirs.status_code == mine.status_code and close(theirs.json(), mine.json()), (path, body)
            for path in ("/about", "/healthz", f"/words?prefix={word[0]}", "/thumbnail/photo 7", "/thumbnail/none"):
                mine, theirs = here.get(path), there.get(path)
                assert theirs.status_code == mine.status_code and theirs.json() == mine.json(), path
            assert there.get("/").status_code == 200


def test_a_new_state_is_picked_up(index_folder, place, model):
    with TestClient(create_app(place, model, LIMITS)) as client:
        assert client.get("/healthz").json() == {"status": "ok", "generation": 1, "documents": 60}
        add(index_folder, [SparseRows.from_bags([{39: 9.0}], ids=["new"])])
        push(Index.open(index_folder), place._collection)
        until = time.monotonic() + 20
        while client.get("/healthz").json()["documents"] != 61 and time.monotonic() < until:
            time.sleep(0.02)
        assert client.get("/healthz").json() == {"status": "ok", "generation": 2, "documents": 61}
        assert client.post("/search", json={"terms": {"39": 1}, "k": 1}).json()["hits"] == [{"id": "new", "score": 9.0}]


def test_an_engine_that_does_not_answer(place, model, monkeypatch):
    with TestClient(create_app(place, model, LIMITS)) as client:

        def gone(*_):
            raise EngineError("qdrant at http://secret.example.org does not answer")

        for name in ("search", "vectors", "note"):
            monkeypatch.setattr(place._collection, name, gone)
        for answer in (
            client.post("/search", json={"text": "red"}), client.post("/explain", json={"text": "red", "id": "x"}),
            client.get("/thumbnail/x"),
        ):  # fmt: skip
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine"
            assert "secret" not in answer.text and answer.headers["retry-after"] == "5"
        assert client.get("/healthz").status_code == 200


def test_a_model_that_did_not_make_the_vectors(tmp_path, model):
    rows = replace(SparseRows.from_bags([{1: 1.0}]), origin=Origin(ModelStamp("other", "", "00" * 16)))
    build(tmp_path / "other", [rows])
    place = EnginePlace(Server("qdrant", ":memory:"))
    push(Index.open(tmp_path / "other"), place._collection)
    with pytest.raises(IndexingError, match="collection lexlip: its vectors were made by other"):
        create_app(place, model)
    create_app(place, model, force=True)
    place.close()


def test_the_command_names_what_it_lacks(capsys):
    for arguments, message in (
        ([], "give --index, or --engine and --uri"),
        (["--engine", "qdrant"], "--engine qdrant needs --uri"),
        (["--index", ".", "--engine", "qdrant", "--uri", ":memory:"], "--index or --engine"),
        (["--engine", "qdrant", "--uri", ":memory:"], "nothing was pushed there"),
    ):
        assert main(["serve", *arguments]) == 2
        assert message in capsys.readouterr().err
