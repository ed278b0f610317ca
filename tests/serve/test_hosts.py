"""Which names a request may give in its Host header."""

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra dev")

from fastapi.testclient import TestClient  # noqa: E402

from lexlip.errors import ConfigError  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.hosts import checked_names, host_name, is_loopback  # noqa: E402


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"), ("LocalHost:8000", "localhost"), ("localhost.:1", "localhost"),
        ("[::1]:8000", "::1"), ("127.0.0.1:", "127.0.0.1"), ("a b", None), ("", None), ("evil/localhost", None),
        ("localhost:x", None), ("user@localhost", None), ("::1", None), ("localhost,evil", None),
    ],
)  # fmt: skip
def test_the_name_in_a_header(header, name):
    assert host_name(header) == name


def test_loopback():
    assert all(is_loopback(name) for name in ("localhost", "127.0.0.1", "127.8.8.8", "::1"))
    assert not any(is_loopback(name) for name in ("localhost.example.org", "10.0.0.1", "127.0.0.1.nip.io", "0.0.0.0"))


def test_names_of_the_command_line():
    assert checked_names(["Search.Example.org", "::1", "10.0.0.1", "*"]) == {
        "search.example.org", "::1", "10.0.0.1", "*",
    }  # fmt: skip
    for wrong in ("http://search", "a b", "", "a/b"):
        with pytest.raises(ConfigError, match="--allow-host"):
            checked_names([wrong])


def test_other_names_are_refused_before_anything_else(index_folder, model):
    with TestClient(create_app(index_folder, model, hosts=checked_names(["search.example.org"]))) as client:
        for host in ("evil.example.org", "testserver", "localhost.evil.org", "", "a b"):
            for method, path in (("GET", "/healthz"), ("POST", "/search"), ("GET", "/nothing")):
                answer = client.request(method, path, headers={"host": host})
                assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host"), host
                assert "\n" not in answer.json()["error"]["message"]
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "search.example.org", "SEARCH.example.org:443"):
            assert client.get("/healthz", headers={"host": host}).status_code == 200, host
        twice = [("host", "localhost"), ("host", "evil.example.org")]
        assert client.get("/healthz", headers=httpx.Headers(twice)).status_code == 421
    with TestClient(create_app(index_folder, model, hosts=checked_names(["*"]))) as client:
        assert client.get("/healthz", headers={"host": "anything"}).status_code == 200
    with TestClient(create_app(index_folder, model)) as client:
        assert client.get("/healthz", headers={"host": "anything"}).status_code == 200
