"""Engines that can be had here, each new for a test: Milvus Lite, Qdrant's client alone, stubs of the Lucene family."""

import importlib.util
import sys
from pathlib import Path

import pytest

from lexlip.index.remote import calls
from lexlip.index.remote.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from lucene_stub import Stub

PACKAGES = {
    "milvus": ("pymilvus", "milvus_lite"), "qdrant": ("qdrant_client",), "opensearch": ("opensearchpy",),
    "elasticsearch": ("elasticsearch",),
}  # fmt: skip
LUCENE = ("opensearch", "elasticsearch")


def require(engine):
    if not all(map(importlib.util.find_spec, PACKAGES[engine])):
        pytest.skip(f"the client of {engine} is not installed: pip install -e '.[{engine}]'")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Pauses of the calls that are tried again, instead of waiting."""
    pauses = []
    monkeypatch.setattr(calls.time, "sleep", pauses.append)
    for name in ("USER", "PASSWORD", "API_KEY", "CA_CERTS"):
        monkeypatch.delenv(f"LEXLIP_ENGINE_{name}", raising=False)
    return pauses


@pytest.fixture
def stub():
    """Makes a stub of an engine of the Lucene family."""
    made = []

    def make(engine="opensearch", login=None):
        require(engine)
        made.append(Stub(engine, login))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def server(tmp_path, stub):
    """Makes a server of an engine's name."""

    def make(engine, name="photos"):
        require(engine)
        uri = {"milvus": str(tmp_path / "vectors.db"), "qdrant": ":memory:"}.get(engine)
        return Server(engine, uri or stub(engine).uri, name)

    return make


@pytest.fixture(params=list(PACKAGES))
def engine(request):
    """Each engine."""
    require(request.param)
    return request.param
