"""Where an engine is and who one is to it. Secrets come from the environment or a file, never from a command line."""

from __future__ import annotations

import importlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lexlip.errors import IndexingError
from lexlip.index.remote.calls import Patience
from lexlip.index.remote.collection import Collection

ENGINES = {  # name -> module, class
    "milvus": ("milvus", "MilvusCollection"),
    "qdrant": ("qdrant", "QdrantCollection"),
    "opensearch": ("lucene", "OpenSearchCollection"),
    "elasticsearch": ("lucene", "ElasticsearchCollection"),
}
NAME = "lexlip"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,199}")  # what all of them take
_VARIABLE = "LEXLIP_ENGINE_"


@dataclass(frozen=True)
class Credentials:
    """Who one is; each may be empty.

    Attributes:
        user, password: a pair.
        api_key: instead of them; Milvus calls it a token.
        ca_certs: file of the authorities that sign the engine's certificate; empty: the system's.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    ca_certs: str = ""

    @staticmethod
    def found(file: Path | None = None) -> Credentials:
        """Those of a JSON file, or of LEXLIP_ENGINE_USER, _PASSWORD, _API_KEY and _CA_CERTS.

        Raises:
            IndexingError: no such file, something else in it, or a half of a pair.
        """
        names = ("user", "password", "api_key", "ca_certs")
        if file is None:
            given = {name: os.environ.get(_VARIABLE + name.upper(), "") for name in names}
            place = "the environment"
        else:
            place = f"--credentials {file}"
            try:
                given = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "no JSON"  # never what stands in it
                raise IndexingError(f"{place} cannot be read: {why}") from None
            if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
                raise IndexingError(f"{place}: an object of texts is due: {', '.join(names)}")
            if unknown := sorted(set(given) - set(names)):
                raise IndexingError(f"{place}: {unknown[0][:40]!r} is none of {', '.join(names)}")
        found = Credentials(**given)
        if bool(found.user) != bool(found.password):
            raise IndexingError(f"{place} has a user without a password, or a password without a user")
        if found.user and found.api_key:
            raise IndexingError(f"{place} has both a user and an API key: one of them")
        if found.ca_certs and not Path(found.ca_certs).is_file():
            raise IndexingError(f"{place}: ca_certs {found.ca_certs}: no such file")
        return found


@dataclass(frozen=True)
class Server:
    """An engine, its address, and the name of a collection there.

    Attributes:
        engine: one of ENGINES.
        uri: of the server; for milvus and qdrant also a path in this machine, for tries.
        name: of the collection: lower-case letters, digits and underscores.
        credentials: who one is.

    Raises:
        IndexingError: no such engine, a name or an address of another form.
    """

    engine: str
    uri: str
    name: str = NAME
    credentials: Credentials = Credentials()

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise IndexingError(f"--engine {self.engine}: one of {', '.join(ENGINES)}")
        if not _NAME.fullmatch(self.name):
            raise IndexingError(
                f"--collection {self.name}: a letter, then letters, digits and _, all lower-case, up to 200"
            )
        try:
            parts = urlsplit(self.uri)
            query = "://" in self.uri and parts.query
            secret = parts.username is not None or parts.password is not None or query
            _ = parts.port
        except ValueError as error:
            raise IndexingError(f"--uri is no address: {error}") from error
        if secret:  # not repeated: messages end in logs
            raise IndexingError(
                "--uri has a user, a password or a ? in it, where others can read what is secret: set "
                "LEXLIP_ENGINE_USER and LEXLIP_ENGINE_PASSWORD, or give --credentials FILE"
            )

    def __str__(self) -> str:
        return f"{self.engine} at {self.uri}, collection {self.name}"

    def collection(self, patience: Patience) -> Collection:
        """The engine's collection, by its client.

        Raises:
            IndexingError: the client is not installed, or an address of another form.
            EngineError: it does not answer.
        """
        module, kind = ENGINES[self.engine]
        return getattr(importlib.import_module(f"lexlip.index.remote.{module}"), kind)(self, patience)
