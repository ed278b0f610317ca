"""What can go wrong at the other end: each is tried again where that may help, and told in one line."""

import json
import socket

import pytest

from lexlip.errors import EngineError
from lexlip.index import Index, IndexingError, build
from lexlip.index.remote import push as pushing
from lexlip.index.remote.calls import PUSHING, SEARCHING, Trouble, call, of_status
from lexlip.index.remote.index import EnginePlace
from lexlip.index.remote.push import push
from lexlip.index.remote.server import Credentials, Server

FULL = {
    "type": "cluster_block_exception",
    "reason": "index [photos] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has "
    "read-only-allow-delete block];",
}


@pytest.fixture
def index(rows, tmp_path):
    build(tmp_path / "index", [rows(60, 30, 8, empty_ratio=0)])
    return Index.open(tmp_path / "index")


def refused(error, status=429):
    items = [{"index": {"_id": "0", "status": 200}}, {"index": {"_id": "1", "status": status, "error": error}}]
    return 200, {"errors": True, "items": items}


def nobody():
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("engine", ["opensearch", "elasticsearch"])
def test_what_passes_is_tried_again(engine, stub, index, no_pauses):
    there = stub(engine)
    there.failures = [
        ["PUT /photos", 503, {}], ["POST /photos/_bulk", *refused({"type": "es_rejected_execution_exception"})],
        ["POST /photos/_bulk", 429, {}], ["POST /photos/_refresh", 504, {}],
    ]  # fmt: skip
    assert push(index, Server(engine, there.uri, "photos").collection(PUSHING), workers=1).documents == 60
    assert not there.failures and len(no_pauses) == 4 and no_pauses[2] > no_pauses[1] * 1.1


@pytest.mark.parametrize("engine", ["opensearch", "elasticsearch"])
@pytest.mark.parametrize(
    ("pattern", "answer", "message"),
    [
        ("POST /photos/_bulk", refused(FULL), "has no space left.*flood-stage.*goes on where it stopped"),
        ("POST /photos/_bulk", (507, {}), "has no space left"),
        ("POST /photos/_bulk", refused({"type": "mapper_parsing_exception", "reason": "bad"}, 400),
         "refuses the request \\(400 document 1: mapper_parsing_exception: bad"),
        ("PUT /photos", (403, {"error": {"type": "security_exception", "reason": "no permissions"}}),
         "refuses the credentials: set LEXLIP_ENGINE_USER"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_told_at_once(engine, stub, index, no_pauses, pattern, answer, message):
    there = stub(engine)
    there.failures = [[pattern, *answer]]
    with pytest.raises(EngineError, match=f"^{engine} at {there.uri}, collection photos {message}") as caught:
        push(index, Server(engine, there.uri, "photos").collection(PUSHING))
    assert not no_pauses and "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["milvus", "qdrant", "opensearch", "elasticsearch"])
def test_an_engine_that_is_not_there(engine, no_pauses):
    pytest.importorskip(
        {"opensearch": "opensearchpy", "milvus": "pymilvus", "qdrant": "qdrant_client"}.get(engine, engine)
    )
    uri = nobody()
    with pytest.raises(
        EngineError, match=f"^{engine} at {uri}, collection lexlip does not answer after 2 tries: is it"
    ):
        EnginePlace(Server(engine, uri)).open()
    assert len(no_pauses) == 1


@pytest.mark.parametrize("engine", ["qdrant", "opensearch", "elasticsearch"])
def test_wrong_credentials(engine, stub, monkeypatch):
    there = stub("opensearch" if engine == "qdrant" else engine, login="Basic dTpwdw==")  # u:pw
    monkeypatch.setenv("LEXLIP_ENGINE_USER", "u")
    for password, outcome in (("wrong", "refuses the credentials"), ("pw", "nothing was pushed")):
        monkeypatch.setenv("LEXLIP_ENGINE_PASSWORD", password)
        if engine == "qdrant" and password == "pw":
            continue  # the stub is none of Qdrant beyond this
        with pytest.raises(EngineError, match=outcome) as caught:
            EnginePlace(Server(engine, there.uri, credentials=Credentials.found())).open()
        assert "wrong" not in str(caught.value)


def test_a_push_goes_on_where_it_stopped(stub, index, monkeypatch):
    there = stub()
    place = EnginePlace(Server("opensearch", there.uri, "photos"))
    collection = Server("opensearch", there.uri, "photos").collection(PUSHING)
    collection.rows = 7
    monkeypatch.setattr(pushing, "_SECONDS", -1.0)  # a note after every request
    send, sent = collection.upsert, []

    def breaks(documents):
        if len(sent) == 4:
            raise KeyboardInterrupt
        sent.append(len(documents))
        send(documents)

    collection.upsert = breaks
    with pytest.raises(KeyboardInterrupt):
        push(index, collection, workers=1)
    with pytest.raises(EngineError, match="the push of its 60 documents has not ended; run the same"):
        place.open()
    collection.upsert = send
    told = []
    done = push(index, collection, workers=3, progress=told.append)
    assert 14 <= done.there_before <= 28 and done.sent == 60 - done.there_before and sum(told) == 60
    assert place.open().search({1: 1.0}, 60) == index.search({1: 1.0}, 60)


def test_a_node_goes_away_in_the_middle_of_a_push(stub, index, no_pauses):
    there = stub()
    collection = Server("opensearch", there.uri, "photos").collection(PUSHING)
    collection.rows = 20
    there.failures = [["POST /photos/_bulk", 503, {}]] * PUSHING.tries
    with pytest.raises(EngineError, match="does not answer after 8 tries: is it running.*it goes on where it stopped"):
        push(index, collection, workers=1)
    assert push(index, collection).documents == 60


def test_notes_that_are_something_else(stub, index):
    there = stub()
    collection = Server("opensearch", there.uri, "photos").collection(PUSHING)
    push(index, collection)
    collection.write_note("push", '{"parts": {"x": [1]}}')
    with pytest.raises(EngineError, match="the notes of an earlier push are not what was written: --overwrite"):
        push(index, collection)
    for card in ("[]", "{}", '{"manifest": {}}', "no JSON"):
        collection.write_note("card", card)
        with pytest.raises(EngineError, match="it was not written by lexlip index push, or by a newer version"):
            EnginePlace(Server("opensearch", there.uri, "photos")).open()


def test_another_program_writes_there_too(stub, index):
    there = stub()
    collection = Server("opensearch", there.uri, "photos").collection(PUSHING)
    push(index, collection)
    collection.delete([1, 2])
    collection.finish()
    with pytest.raises(EngineError, match="holds 58 documents, not the 60 that were pushed"):
        push(index, collection)


def test_a_query_of_too_many_terms(stub, index):
    there = stub()
    place = EnginePlace(Server("opensearch", there.uri, "photos"))
    push(index, place._collection)
    with pytest.raises(IndexingError, match="a query of 600 terms: keep the heaviest .*maxClauseCount"):
        place.open().search(dict.fromkeys(range(600), 1.0))


def test_statuses():
    assert of_status(401, "") == of_status(403, "") == Trouble.DENIED
    assert of_status(403, json.dumps(FULL)) == of_status(429, json.dumps(FULL)) == Trouble.FULL
    assert of_status(500, "Service internal error: No space left on device: WAL buffer size exceeds") == Trouble.FULL
    assert of_status(429, "") == Trouble.BUSY and of_status(503, "") == Trouble.DOWN
    assert of_status(404, "") == of_status(500, "") == Trouble.REFUSED


def test_what_milvus_says():
    pymilvus = pytest.importorskip("pymilvus", reason="needs the extra milvus")
    from lexlip.index.remote.milvus import MilvusCollection

    for code, words, trouble in (
        (1100, "auth check failure, please check username and password are correct", Trouble.DENIED),
        (65535, "PermissionDenied: Insert: permission deny to u", Trouble.DENIED),
        (9, "quota exceeded[reason=disk quota exceeded, please allocate more resources]", Trouble.FULL),
        (8, "request is rejected by grpc RateLimiter middleware, rate limit exceeded", Trouble.BUSY),
        (2, "Fail connecting to server on h:19530", Trouble.DOWN),
        (1, "Retry run out of 75 retry times, message=server unavailable", Trouble.DOWN),
        (1100, "vector dimension mismatch", Trouble.REFUSED),
    ):
        assert MilvusCollection.diagnose(pymilvus.MilvusException(code, words)) == (trouble, words)


def test_what_qdrant_says():
    pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
    from httpx import Headers, ReadTimeout
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    from lexlip.index.remote.qdrant import QdrantCollection

    body = b'{"status":{"error":"No space left on device"}}'
    assert QdrantCollection.diagnose(UnexpectedResponse(500, "", body, Headers()))[0] == Trouble.FULL
    assert QdrantCollection.diagnose(UnexpectedResponse(401, "", b"Invalid API key", Headers()))[0] == Trouble.DENIED
    assert QdrantCollection.diagnose(ResponseHandlingException(ReadTimeout("slow")))[0] == Trouble.DOWN


def test_pauses_grow_and_end(no_pauses):
    def work():
        raise OSError("no")

    with pytest.raises(EngineError, match="x does not answer after 9 tries.*\\(no\\)"):
        call(work, lambda error: (Trouble.DOWN, str(error)), "x", 9)
    assert len(no_pauses) == 8 and no_pauses[0] < 0.7 and 20 < no_pauses[-1] < 40
    assert SEARCHING.tries < PUSHING.tries


@pytest.mark.parametrize(
    ("engine", "uri", "name", "message"),
    [
        ("vespa", "http://h", "a", "--engine vespa: one of milvus, qdrant"),
        ("qdrant", "http://h", "Photos", "--collection Photos: a letter, then"),
        ("qdrant", "http://u:hidden@h", "a", "--uri has a user, a password or a \\? in it"),
        ("qdrant", "http://h?key=hidden", "a", "--uri has a user, a password or a \\? in it"),
        ("qdrant", "http://h:port", "a", "--uri is no address"),
        ("opensearch", "folder", "a", "--uri folder: an address such as"),
        ("milvus", "folder", "a", "--uri folder: an address, or a file of Milvus Lite"),
    ],
)
def test_addresses(engine, uri, name, message):
    with pytest.raises(IndexingError, match=message) as caught:
        Server(engine, uri, name).collection(SEARCHING)
    assert "hidden" not in str(caught.value)


def test_credentials(tmp_path, monkeypatch):
    assert Credentials.found() == Credentials()
    monkeypatch.setenv("LEXLIP_ENGINE_API_KEY", "secret")
    assert Credentials.found().api_key == "secret" and "secret" not in repr(Credentials.found())
    file = tmp_path / "key.json"
    for text, message in (
        ("{", "cannot be read: no JSON"), ("[]", "an object of texts is due"), ('{"key": "s3"}', "'key' is none of"),
        ('{"user": "u"}', "a user without a password"), ('{"ca_certs": "no"}', "ca_certs no: no such file"),
        ('{"user": "u", "password": "s3", "api_key": "s3"}', "both a user and an API key"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(IndexingError, match=f"--credentials .*{message}") as caught:
            Credentials.found(file)
        assert "s3" not in str(caught.value)
    file.write_text('{"user": "u", "password": "s3"}')
    assert Credentials.found(file) == Credentials("u", "s3") and "s3" not in repr(Credentials.found(file))
    with pytest.raises(IndexingError, match="cannot be read: No such file"):
        Credentials.found(tmp_path / "no.json")
