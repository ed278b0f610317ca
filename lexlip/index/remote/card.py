"""What a collection says of itself: the state of the index it was pushed from, the model's stamp among it.

It lies in notes, because every engine can keep them: `card`, and the counts of `frequencies-GENERATION-N`.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, replace

import numpy as np

from lexlip.errors import DamagedIndex, EngineError, IndexingError
from lexlip.index.check import Facts
from lexlip.index.remote.collection import MAX_NOTE, Collection
from lexlip.index.store import Manifest, manifest_of
from lexlip.sparse import MAX_TERM

CARD = "card"
_MAX_TABLE = 16 * (MAX_TERM + 1)  # bytes


@dataclass(frozen=True)
class Card:
    """See above.

    Attributes:
        manifest: of the index, without its segments.
        documents: that the index held.
        complete: whether all of them have arrived.
        pieces: notes that the counts of its terms fill.
    """

    manifest: Manifest
    documents: int
    complete: bool
    pieces: int = 0


def write_card(collection: Collection, card: Card) -> None:
    """Replace the card.

    Raises:
        IndexingError: sources that do not fit.
    """
    values = {**asdict(card), "manifest": asdict(replace(card.manifest, segments=()))}
    text = json.dumps(values)
    if len(text) > MAX_NOTE:
        raise IndexingError(
            f"the index remembers {len(card.manifest.sources):,} sources, more than fit an engine's note: build it "
            "anew from fewer folders"
        )
    collection.write_note(CARD, text)


def read_card(collection: Collection) -> Card | None:
    """The card; None where nothing was pushed.

    Raises:
        EngineError: something else lies there.
    """
    text = collection.note(CARD)
    if text is None:
        return None
    try:
        facts = Facts.parse(text.encode(), collection.where)
        manifest = manifest_of(facts.part("manifest"))
        complete = facts.values.get("complete") is True
        return Card(manifest, facts.whole("documents"), complete, facts.whole("pieces", 0, 1000))
    except DamagedIndex as error:
        raise EngineError(f"{error}: it was not written by lexlip index push, or by a newer version") from error


def required_card(collection: Collection) -> Card:
    """The card of a collection that is to be searched.

    Raises:
        EngineError: there is none, or the first push has not ended.
    """
    card = read_card(collection)
    if card is None or not collection.exists():
        raise EngineError(f"{collection.where}: nothing was pushed there; lexlip index push INDEX does that")
    if not card.complete:
        raise EngineError(
            f"{collection.where}: the push of its {card.documents:,} documents has not ended; run the same "
            "lexlip index push again, it goes on where it stopped"
        )
    return card


def write_frequencies(collection: Collection, generation: int, terms: np.ndarray, counts: np.ndarray) -> int:
    """Write how many documents hold each term; returns the number of notes."""
    text = b64encode(zlib.compress(np.stack([terms, counts]).astype("<i8").tobytes())).decode()
    pieces = [text[first : first + MAX_NOTE] for first in range(0, len(text), MAX_NOTE)]
    for number, piece in enumerate(pieces):
        collection.write_note(f"frequencies-{generation}-{number}", piece)
    return len(pieces)


def read_frequencies(collection: Collection, card: Card) -> tuple[np.ndarray, np.ndarray]:
    """(T,) terms, ascending, and (T,) counts.

    Raises:
        EngineError: a note is missing, or something else.
    """
    keys = [f"frequencies-{card.manifest.generation}-{number}" for number in range(card.pieces)]
    try:
        packed = "".join(text for key in keys if (text := collection.note(key)) is not None)
        table = np.frombuffer(zlib.decompressobj().decompress(b64decode(packed), _MAX_TABLE), "<i8").reshape(2, -1)
    except (ValueError, zlib.error) as error:
        raise EngineError(f"{collection.where}: its counts of words are not what was written: push again") from error
    return table[0], table[1]
