"""The service in this process: answers, refusals, limits, new states of the index."""

import asyncio
import re
import threading
import time
import zlib

import pytest
import torch

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra dev")

from fastapi.testclient import TestClient  # noqa: E402
from fuzzing.png import whole  # noqa: E402

from lexlip.errors import ConfigError  # noqa: E402
from lexlip.index import DamagedIndex, Index, IndexingError, SparseRows, add, build  # noqa: E402
from lexlip.index.store import MANIFEST  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.decode import Decoders, DecodersBusy  # noqa: E402
from lexlip.serve.limits import Limits  # noqa: E402
from lexlip.serve.searcher import Searcher  # noqa: E402
from lexlip_data.sources.images import open_image  # noqa: E402

JSON = {"content-type": "application/json"}


@pytest.fixture
def client(index_folder, model):
    with TestClient(create_app(index_folder, model, Limits(max_body=20_000, max_k=50, max_pixels=10_000))) as client:
        yield client


def pairs(answer):
    assert answer.status_code == 200, answer.text
    return [(hit["id"], hit["score"]) for hit in answer.json()["hits"]]


def test_answers_are_the_indexs(client, index_folder, model, image):
    index = Index.open(index_folder, model)
    assert pairs(client.post("/search", json={"text": "red dot", "k": 5})) == index.search("red dot", 5)
    bag = {5: 0.5, 7: 2.0}
    assert pairs(client.post("/search", json={"terms": {"5": 0.5, "7": 2}, "k": 3.0})) == index.search(bag, 3)
    words = {model.tokenizer.convert_ids_to_tokens(term): weight for term, weight in bag.items()}
    answer = client.post("/search", json={"words": {**words, "no such word": 1.0}})
    assert pairs(answer) == index.search(bag) and answer.json()["unknown_words"] == ["no such word"]
    answer = client.post("/search", files={"image": image()}, data={"k": "4", "drop": "0"})
    assert pairs(answer) == index.search(open_image(image()), 4)
    # A term that no document has finds nothing.
    assert pairs(client.post("/search", json={"terms": {"4000000000": 1.0, "9999999999": 1.0}})) == []


def test_an_explanation_adds_up(client, model):
    best = client.post("/search", json={"text": "red dot"}).json()["hits"][0]
    why = client.post("/explain", json={"text": "red dot", "id": best["id"]}).json()
    assert why["score"] == best["score"] == pytest.approx(sum(term["score"] for term in why["terms"]))
    assert all(term["word"] == model.tokenizer.convert_ids_to_tokens(term["term"]) for term in why["terms"])
    assert [term["score"] for term in why["terms"]] == sorted((t["score"] for t in why["terms"]), reverse=True)


def test_a_model_that_gives_more_terms_than_a_query_has(index_folder, model, image, monkeypatch):
    """The service starts, and its answers are those to the heaviest terms."""
    vector = torch.linspace(2.0, 1.0, 20_000)
    monkeypatch.setattr(model, "encode_text", lambda texts: vector[None])
    monkeypatch.setattr(model, "encode_image", lambda images: vector[None])
    with TestClient(create_app(index_folder, model)) as client:
        wanted = Index.open(index_folder).search(vector[:16_384])
        assert pairs(client.post("/search", json={"text": "a dog"})) == wanted
        assert pairs(client.post("/search", files={"image": image()})) == wanted


def test_number_ids_in_forms(tmp_path, model, image):
    build(tmp_path / "numbers", [SparseRows.from_bags([{term: 1.0 for term in range(100)}], ids=[7])])
    with TestClient(create_app(tmp_path / "numbers", model)) as client:
        by_form = client.post("/explain", files={"image": image()}, data={"id": "7"})
        assert by_form.status_code == 200 and by_form.json()["id"] == 7 and by_form.json()["terms"]
        assert client.post("/explain", json={"terms": {"1": 1}, "id": 7}).json()["score"] == 1.0
        assert client.post("/explain", json={"terms": {"1": 1}, "id": "7"}).status_code == 404
        for other in (" 7", "7 ", "+7", "07", "7.0", "0_7", "\u0667", "-0x7", "9" * 4000):
            by_form = client.post("/explain", files={"image": image()}, data={"id": other})
            assert (by_form.status_code, by_form.json()["error"]["code"]) == (404, "no_document"), other


def test_numbers_in_forms_are_jsons(client, image):
    for k in ("3", "3.0", "3e0"):
        assert len(pairs(client.post("/search", files={"image": image()}, data={"k": k}))) == 3
    for field, values in (
        ("k", (" 3", "+3", "03", "3_0", "\u0663", "3.5", "1e400")),
        ("drop", ("nan", ".5", "1", "0x0")),
    ):
        for value in values:
            answer = client.post("/search", files={"image": image()}, data={field: value})
            assert answer.status_code == 422 and answer.json()["error"]["where"] == [field], value


def bomb(side):
    """A PNG of a few bytes that says it is `side` x `side` pixels."""
    return whole(side, side, 8, 2, zlib.compress(bytes(10_000)))


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (422, "invalid_request", {"json": {"text": "a", "k": 10**9}}),
        (422, "invalid_request", {"json": {"text": "a", "k": 51}}),
        (422, "invalid_request", {"json": {"text": "a", "k": 0}}),
        (422, "invalid_request", {"json": {"text": "a", "k": "5"}}),
        (422, "invalid_request", {"json": {"text": "a", "k": True}}),
        (422, "invalid_request", {"json": {"text": "a", "drop": 1}}),
        (422, "invalid_request", {"json": {"text": "a", "size": 1}}),
        (422, "invalid_request", {"json": {"text": ""}}),
        (422, "invalid_request", {"json": {"text": "a" * 10_001}}),
        (422, "invalid_request", {"json": {"text": "a", "terms": {"1": 1}}}),
        (422, "invalid_request", {"json": {"terms": {"-1": 1}}}),
        (422, "invalid_request", {"json": {"terms": {"1": -1}}}),
        (422, "invalid_request", {"json": {"terms": {}}}),
        (422, "invalid_request", {"json": []}),
        (422, "invalid_request", {"json": "text"}),
        (400, "invalid_json", {"content": "{", "headers": JSON}),
        (400, "invalid_json", {"content": '{"terms": {"1": NaN}}', "headers": JSON}),
        (400, "invalid_json", {"content": '{"text": "\\ud800"}', "headers": JSON}),
        (400, "invalid_json", {"content": b'{"text": "\xff"}', "headers": JSON}),
        (400, "invalid_json", {"content": "[" * 19_000, "headers": JSON}),
        (413, "body_too_large", {"content": b" " * 20_001, "headers": JSON}),
        (415, "unsupported_media_type", {"content": b"{}"}),
        (400, "invalid_form", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
        (400, "invalid_form", {"files": [("image", b"1"), ("more", b"2")]}),
        (422, "invalid_request", {"files": {"other": b"1"}}),
        (422, "invalid_request", {"files": {"image": b"1"}, "data": {"k": "many"}}),
        (422, "invalid_request", {"files": {"image": b"1"}, "data": {"k": ["1", "2"]}}),
        (422, "broken_picture", {"files": {"image": ("cat.jpg", b"PK\x03\x04" + bytes(100), "image/jpeg")}}),
        (422, "broken_picture", {"files": {"image": ("empty.jpg", b"")}}),
        (422, "broken_picture", {"files": {"image": bomb(60_000)}}),
        (422, "broken_picture", {"files": {"image": bomb(101)}}),  # more than this service's 10,000
    ],
)
def test_refusals(client, status, code, request_):
    answer = client.post("/search", **request_)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert error["message"] and "\n" not in error["message"]
    python = r"Input|dictionary|function|constrained|Error\b|Exception|Warning|\bint\b|\bstr\b|\bfloat\b|None|pydantic"
    assert not re.search(python, f"{error['message']} {error['where']}"), error


@pytest.mark.parametrize(
    ("request_", "message", "where"),
    [
        ({"text": "a", "k": 51}, "k must be at most 50", ["k"]),
        ({"text": "a", "k": "5"}, "k must be a whole number", ["k"]),
        ({"text": "a", "size": 1}, "size is no field of this request", ["size"]),
        ({"text": 1}, "text must be a string", ["text"]),
        ({"terms": {"-1": 1}}, "terms.-1 must be a term's number, such as 3899", ["terms", "-1"]),
        ({"terms": [1]}, "terms must be an object", ["terms"]),
        ({"words": {"a": "b"}}, "words.a must be a number", ["words", "a"]),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_api(client, request_, message, where):
    error = client.post("/search", json=request_).json()["error"]
    assert (error["message"], error["where"]) == (message, where)


@pytest.mark.parametrize(("id", "message"), [(True, "a string or a whole number"), ("a" * 5000, "at most 4096")])
def test_an_id_of_no_kind(client, id, message):
    error = client.post("/explain", json={"text": "a", "id": id}).json()["error"]
    assert message in error["message"] and error["where"] == ["id"]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "utf-16", "rot13", "zip", "nothing", "a\0b", '"'])
def test_charsets_of_forms(client, image, caplog, charset):
    head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body, kind = head + image() + b"\r\n--XX--\r\n", "multipart/form-data; boundary=XX; charset="
    answer = client.post("/search", content=body, headers={"content-type": kind + charset})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")
    assert client.post("/search", content=body, headers={"content-type": kind + "UTF-8"}).status_code == 200
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_a_head_is_asked_for_and_nothing_is_redirected(client):
    for path in ("/healthz", "/metrics", "/openapi.json"):
        assert client.head(path).status_code == 200
    for path in ("/search/", "/healthz/"):
        answer = client.post(path, headers={"host": "evil.example.org"}, follow_redirects=False)
        assert answer.status_code == 404 and "location" not in answer.headers


def test_other_errors_have_the_same_form(client, monkeypatch):
    for answer, status, code in (
        (client.get("/nothing"), 404, "not_found"),
        (client.get("/search"), 405, "method_not_allowed"),
        (client.post("/explain", json={"text": "a", "id": "photo -1"}), 404, "no_document"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    quiet = TestClient(client.app, raise_server_exceptions=False)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "search", lambda *_, **__: 1 / 0)
        answer = quiet.post("/search", json={"terms": {"1": 1}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert client.post("/search", json={"terms": {"1": 1}}).status_code == 200
    numbers = client.get("/metrics").text
    for path, status in (("/search", 500), ("/search", 200), ("other", 404)):
        assert f'lexlip_requests_total{{path="{path}",status="{status}"}} 1.0' in numbers
    assert "lexlip_active_requests 0.0" in numbers
    assert 'lexlip_request_seconds_count{path="/search"} 3.0' in numbers  # GET, the mistake, the answer
    assert 'lexlip_stage_seconds_count{stage="search"} 3.0' in numbers  # the explanation, the mistake, the answer


@pytest.mark.parametrize("path, method", [("/search", "search"), ("/explain", "explain")])
def test_a_damaged_index_is_not_the_clients_mistake(client, monkeypatch, path, method):
    def damaged(*_, **__):
        raise DamagedIndex("0123.seg: section ids is damaged")

    monkeypatch.setattr(Index, method, damaged)
    request = {"terms": {"1": 1}} | ({"id": "photo 1"} if path == "/explain" else {})
    answer = client.post(path, json=request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_index")


def test_an_image_waits_for_the_model_resized(client, model, monkeypatch, image):
    """However many wait, a single one is held in its own size."""
    seen = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda images: seen.append(images) or encode(images))
    assert client.post("/search", files={"image": image(size=(90, 70))}).status_code == 200
    assert [tuple(images.shape) for images in seen] == [(1, 3, model.config.image_size, model.config.image_size)]


@pytest.mark.parametrize("limits", [{"max_k": 0}, {"max_body": -1}, {"concurrency": 0}, {"max_pixels": 10**9}])
def test_limits_that_cannot_be(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Limits(**limits)


def test_no_index_and_no_tokenizer(tmp_path, index_folder, model):
    with pytest.raises(IndexingError, match="holds no index"):
        create_app(tmp_path, model)
    model.tokenizer = None
    with pytest.raises(IndexingError, match="no tokenizer"):
        create_app(index_folder, model)


def in_loop(app, work):
    """Run `work(client)`, asynchronous, against an app."""

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.wait_for(work(client), 60)

    return asyncio.run(main())


def test_a_body_that_never_ends(index_folder, model):
    async def work(client):
        async def slowly():
            while True:
                yield b" "
                await asyncio.sleep(0.01)

        return await client.post("/search", content=slowly(), headers=JSON)

    answer = in_loop(create_app(index_folder, model, Limits(body_seconds=0.2)), work)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "too_slow")
    assert answer.headers["connection"] == "close"


def hold(model, monkeypatch):
    """Lets texts wait in the model; two events: one is waiting, and all may go on."""
    inside, free = threading.Event(), threading.Event()
    encode = model.encode_text

    def slow(texts):
        inside.set()
        assert free.wait(30)
        return encode(texts)

    monkeypatch.setattr(model, "encode_text", slow)
    return inside, free


def test_too_many_at_once(index_folder, model, monkeypatch):
    """One request sits in the model: the next is turned away, what is free is answered, and it ends well itself."""
    inside, free = hold(model, monkeypatch)

    async def work(client):
        first = asyncio.create_task(client.post("/search", json={"text": "a"}))
        await asyncio.to_thread(inside.wait, 30)
        busy = await client.post("/search", json={"terms": {"1": 1}})
        health, metrics = await client.get("/healthz"), await client.get("/metrics")
        free.set()
        return busy, health, metrics, await first, await client.post("/search", json={"terms": {"1": 1}})

    busy, health, metrics, first, later = in_loop(create_app(index_folder, model, Limits(concurrency=1)), work)
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "busy") and int(busy.headers["retry-after"]) >= 1
    assert health.status_code == metrics.status_code == first.status_code == later.status_code == 200
    assert "lexlip_active_requests 1.0" in metrics.text
    assert 'lexlip_requests_total{path="/search",status="200"}' not in metrics.text  # it is counted when it ends
    assert 'lexlip_requests_total{path="/search",status="503"} 1.0' in metrics.text


def test_suggestions_have_places_of_their_own(index_folder, model, monkeypatch):
    """One hangs: another is turned away, texts are answered."""
    inside, free = asyncio.Event(), asyncio.Event()

    async def waits(self, index, prefix, limit):
        inside.set()
        await free.wait()
        return []

    monkeypatch.setattr(Searcher, "suggest", waits)

    async def work(client):
        first = asyncio.create_task(client.get("/words"))
        await inside.wait()
        second, text = await client.get("/words"), await client.post("/search", json={"text": "a"})
        free.set()
        return await first, second, text

    first, second, text = in_loop(create_app(index_folder, model, Limits(concurrency=1)), work)
    assert (first.status_code, second.status_code, text.status_code) == (200, 503, 200)


def test_images_take_no_place_from_texts(index_folder, model, monkeypatch, image):
    """One image hangs where it is decoded: another is turned away, texts are answered."""
    inside, free = asyncio.Event(), asyncio.Event()

    async def waits(self, data, square, max_pixels):
        inside.set()
        await free.wait()
        raise DecodersBusy

    monkeypatch.setattr(Decoders, "image", waits)

    async def work(client):
        first = asyncio.create_task(client.post("/search", files={"image": image()}))
        await inside.wait()
        second = await client.post("/search", files={"image": image()})
        texts = [await client.post("/search", json={"text": "a"}) for _ in range(3)]
        free.set()
        return await first, second, texts

    first, second, texts = in_loop(create_app(index_folder, model, Limits(concurrency=1)), work)
    for answer in (first, second):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy") and answer.headers["retry-after"]
    assert {answer.status_code for answer in texts} == {200}


def wait_for(client, generation):
    for _ in range(500):
        if client.get("/healthz").json()["generation"] == generation:
            return
        time.sleep(0.01)
    raise AssertionError(f"generation {generation} is not served after 5 seconds")


def test_a_new_state_is_picked_up(index_folder, model):
    with TestClient(create_app(index_folder, model, Limits(reload_seconds=0.01))) as client:
        before = client.post("/search", json={"terms": {"3": 1.0}}).json()
        add(index_folder, [SparseRows.from_bags([{3: 60_000.0}], ids=["the new one"])])
        wait_for(client, 2)
        after = client.post("/search", json={"terms": {"3": 1.0}}).json()
        assert before["generation"] == 1 and after["generation"] == 2
        assert after["hits"][0]["id"] == "the new one" and after["hits"][1:] == before["hits"][:9]
        assert client.get("/healthz").json() == {"status": "ok", "generation": 2, "documents": 61}


def test_a_request_ends_on_the_state_it_began_with(index_folder, model, monkeypatch):
    """While it waits in the model, the index is built anew, and the files of the old state are removed."""
    expected = Index.open(index_folder, model).search("red dot", 5)
    with TestClient(create_app(index_folder, model, Limits(reload_seconds=0.01))) as client:
        inside, free = hold(model, monkeypatch)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/search", json={"text": "red dot", "k": 5}))
        )
        thread.start()
        assert inside.wait(30)
        old = {path.name for path in index_folder.glob("*.seg")}
        build(index_folder, [SparseRows.from_bags([{3: 1.0}], ids=["alone"])], overwrite=True)
        assert not old & {path.name for path in index_folder.glob("*.seg")}
        wait_for(client, 2)
        free.set()
        thread.join(30)
        assert answers[0].json()["generation"] == 1 and pairs(answers[0]) == expected
        assert pairs(client.post("/search", json={"terms": {"3": 1.0}})) == [("alone", 1.0)]


def test_a_damaged_state_is_not_served(index_folder, model):
    good = (index_folder / MANIFEST).read_bytes()
    with TestClient(create_app(index_folder, model, Limits(reload_seconds=0.01))) as client:
        (index_folder / MANIFEST).write_bytes(good[:-5])
        for _ in range(500):
            if 'lexlip_reloads_total{outcome="failed"}' in client.get("/metrics").text:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the damaged state was not noticed")
        assert client.get("/healthz").json()["generation"] == 1
        assert client.post("/search", json={"terms": {"3": 1.0}}).status_code == 200
        (index_folder / MANIFEST).write_bytes(good)
        add(index_folder, [SparseRows.from_bags([{3: 1.0}], ids=["one more"])])
        wait_for(client, 2)
