"""Where vectors come from: the model that made them, and the files that were encoded.

Shards carry both in their schema, the manifest of an index keeps them. Vectors of two models share no scale and often
no vocabulary: an index takes those of one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index.check import Facts
from lexlip.index.lookup import TableModel

if TYPE_CHECKING:
    from lexlip.models.retrieval import RetrievalModel

_KEY = b"lexlip.origin"  # of a shard's schema


@dataclass(frozen=True)
class ModelStamp:
    """A model as an index remembers it.

    Attributes:
        name: folder or name on the hub, as it was given; empty where a model object was.
        folder: absolute, if it was one; else empty.
        fingerprint: of its weights, shape, vocabulary and activation (`lexlip.models.fingerprint`).
    """

    name: str
    folder: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name or 'a model'} ({self.fingerprint[:8]})"


@dataclass(frozen=True)
class Source:
    """What was encoded.

    Attributes:
        root: its folder or file, absolute.
        what: "images" or "texts".
        id_prefix: what every id begins with, besides its name inside the root.
    """

    root: str
    what: str
    id_prefix: str = ""


@dataclass(frozen=True)
class Origin:
    """Of some rows; what is not known is None."""

    model: ModelStamp | None = None
    source: Source | None = None


def origin_metadata(origin: Origin) -> dict[bytes, str]:
    """For a shard's schema."""
    return {_KEY: json.dumps(asdict(origin), sort_keys=True)}


def origin_of(metadata: dict[bytes, bytes] | None, place: object) -> Origin:
    """What a shard's schema says.

    Raises:
        IndexingError: it says something else.
    """
    text = (metadata or {}).get(_KEY)
    if text is None:
        return Origin()
    try:
        facts = Facts.parse(text, place)
        sources = facts.values.get("source") is not None
        return Origin(stamp_of(facts), source_of(facts.part("source")) if sources else None)
    except DamagedIndex as error:
        raise IndexingError(f"{place}: its schema says nothing usable of its origin ({error})") from error


def stamp_of(facts: Facts) -> ModelStamp | None:
    """The entry `model` of a shard or a manifest; None where there is none.

    Raises:
        DamagedIndex: it is no such entry.
    """
    if facts.values.get("model") is None:
        return None
    model = facts.part("model")
    return ModelStamp(*(model.text(name) for name in ("name", "folder", "fingerprint")))


def source_of(facts: Facts) -> Source:
    """An entry of `sources`; see `stamp_of`."""
    return Source(facts.text("root"), facts.text("what"), facts.text("id_prefix"))


def require_model(
    index: object, stamp: ModelStamp | None, model: RetrievalModel | TableModel, name: str = "",
    sources: Sequence[Source] = (),
) -> None:  # fmt: skip
    """Refuse a model that did not make the vectors of an index. An index without a stamp takes any.

    Args:
        sources: of the index, if it lies in a folder: with one folder of images, the command that rebuilds is told.

    Raises:
        IndexingError: another one.
    """
    if stamp is None:
        return
    if isinstance(model, TableModel):
        name = name or str(model.folder)
        given = ModelStamp(name, "", model.fingerprint)
    else:
        from lexlip.models.fingerprint import fingerprint

        given = ModelStamp(name, "", fingerprint(model))
    if given.fingerprint != stamp.fingerprint:
        where = f", last seen in {stamp.folder}" if stamp.folder else ""
        anew = ""
        if name and len(sources) == 1 and sources[0].what == "images":
            anew = f", {rebuilding(sources[0].root, index, name)} builds it anew"
        raise IndexingError(
            f"{index}: its vectors were made by {stamp}{where}, not by {given}; scores across models mean nothing, "
            f"--force (force=True) searches all the same{anew}"
        )


def rebuilding(photos: object, index: object, model: str) -> str:
    """The command that makes an index of a folder anew with another model, for messages."""
    words = (shlex.quote(str(word)) for word in (photos, "--index", index, "--model", model))
    return f"lexlip sync {' '.join(words)} --rebuild"
