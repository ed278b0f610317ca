"""What an engine elsewhere offers: a dozen calls, from which pushing, searching, explaining and serving are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lexlip.index.index import Hit
from lexlip.index.queries import Bag
from lexlip.index.remote.calls import Patience, Trouble, call

if TYPE_CHECKING:
    from lexlip.index.remote.server import Server

MAX_ID = 512  # bytes of a string id that every engine takes
MAX_NOTE = 60_000  # characters, ASCII; Milvus holds 65,535 bytes


class Document(NamedTuple):
    """A document as it is stored.

    Attributes:
        id: of it.
        terms: ascending, at least one.
        weights: as many, above 0; an index's, so float16 holds them.
    """

    id: int | str
    terms: list[int]
    weights: list[float]


class Collection(Protocol):
    """A named set of documents in an engine, and notes beside it. Raises EngineError for whatever fails there.

    Attributes:
        where: engine, address and name, for messages.
        rows: documents that one `upsert` takes at most.
        max_k: results that one `search` gives at most.
        parallel: whether several threads may call at once.
        options: of milvus, more parameters of the index that `create` makes.
    """

    where: str
    rows: int
    max_k: int
    parallel: bool
    options: dict[str, Any] = {}
    _tries: int
    _name: str
    _notes: str  # the set that holds them
    _client: Any

    def _begin(self, server: Server, patience: Patience) -> None:
        # Not __init__, which Python 3.10 takes away from protocols.
        self.where, self._tries = str(server), patience.tries
        self._name, self._notes = server.name, f"{server.name}_notes"

    @staticmethod
    def diagnose(error: Exception) -> tuple[Trouble, str]:
        """What an exception of the engine's client means, and its words."""

    def _try(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return call(partial(work, *arguments, **options), self.diagnose, self.where, self._tries)

    def exists(self) -> bool:
        """Whether there is such a set."""

    def create(self, ids: str, shards: int | None) -> None:
        """Make it, empty.

        Args:
            ids: "int" or "string".
            shards: parts that the engine divides it into; None: as the engine does.
        """

    def drop(self) -> None:
        """Remove it, then its notes; what is not there is no error."""

    def upsert(self, documents: Sequence[Document]) -> None:
        """Add documents; one whose id is there takes its place. All or, after an error, any of them."""

    def delete(self, ids: Sequence[int | str]) -> None:
        """Remove documents; an id that is not there is no error."""

    def finish(self) -> None:
        """Make everything that was written durable and found."""

    def search(self, bags: Sequence[Bag], k: int) -> list[list[Hit]]:
        """Of each bag the k best by dot product, best first, equal scores in the engine's order; k is 1 to `max_k`.

        No bag is empty.
        """

    def vectors(self, ids: Sequence[int | str]) -> dict[int | str, Bag]:
        """Terms, ascending, and weights of documents; those that are not there are left out."""

    def ids(self) -> Iterator[list[int | str]]:
        """Every id, some at a time."""

    def count(self) -> int:
        """How many documents."""

    def note(self, key: str) -> str | None:
        """A note; None where there is none."""

    def write_note(self, key: str, text: str) -> None:
        """Write a note of at most MAX_NOTE characters of ASCII, also before the set itself is made."""

    def close(self) -> None:
        """Let go of files and connections; Milvus Lite and Qdrant's local mode hold their files alone."""
        self._client.close()
