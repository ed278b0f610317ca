"""A query as people write it to photos with their files and words, for other libraries' retrievers.

search = PhotoSearch("photos.index")
[found.path for found in search("a dog on the beach -cat", 5)]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexlip.index.index import Index
from lexlip.index.lookup import table_of
from lexlip.index.query_words import parse_query, resolve
from lexlip.index.remembered import remembered
from lexlip.sync.photos import PhotoRoots

WORDS = 8  # of the query, that a photo is described by


@dataclass(frozen=True)
class Found:
    """A photo of a result.

    Attributes:
        id: of the document.
        score: of the query.
        path: of its file; None where the index does not know it.
        words: of the query that it shares, heaviest first.
    """

    id: int | str
    score: float
    path: str | None
    words: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """What retrievers pass on beside the text."""
        return {"id": self.id, "path": self.path, "score": self.score}


class PhotoSearch:
    """An index with the model that made it, opened once; without torch where a table is the model's text side.

    Args:
        index: its folder; states that are published later are not seen.
        model: another name or folder of that model.
        trust_sources: of `LexLIP.from_pretrained`.

    Raises:
        IndexingError: no index there, or another model.
        CheckpointError: no such model.
    """

    def __init__(self, index: str | Path, model: str | None = None, trust_sources: bool = False):
        name = model or remembered(index, trust_sources)
        self.index = Index.open(index, table_of("model ", name) or name, trust_sources)
        self._roots = PhotoRoots(self.index.manifest.sources)

    def __call__(self, query: str, k: int = 10) -> list[Found]:
        """The k best photos, best first.

        Raises:
            IndexingError: as `parse_query` and `resolve`.
        """
        assert self.index.model is not None
        resolved = resolve(parse_query(query), self.index.model)
        found = []
        for hit in self.index.search(resolved.bag, k, **resolved.conditions):
            path = self._roots.path(hit.id)
            words = [share.word for share in self.index.explain(resolved.bag, hit.id)[:WORDS] if share.word]
            found.append(Found(hit.id, hit.score, str(path) if path else None, tuple(words)))
        return found
