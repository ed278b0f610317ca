"""The index that is served now: a newly published state takes the place of the old one between two requests."""

from __future__ import annotations

import asyncio
import logging
import re

from lexlip.index.places import Place, Searchable
from lexlip.serve.metrics import Metrics

_NUMBER_ID = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # as JSON writes it
_log = logging.getLogger("uvicorn.error")


class CurrentIndex:
    """An index's newest state.

    A request takes `index` once and keeps it to its end; a state is dropped when its last request is done, because its
    files stay readable while they are mapped.

    Raises:
        IndexingError, EngineError: no index there.
    """

    def __init__(self, place: Place, metrics: Metrics):
        self._place, self._metrics = place, metrics
        self._seen = place.stamp()
        self.index: Searchable = place.open()
        metrics.generation.set_function(lambda: self.index.manifest.generation)
        metrics.documents.set_function(lambda: len(self.index))

    async def watch(self, seconds: float) -> None:
        """Look for a new state again and again; one that cannot be opened is logged once and tried again."""
        logged = None
        while True:
            await asyncio.sleep(seconds)
            try:
                stamp = await asyncio.to_thread(self._place.stamp)
                if stamp == self._seen:
                    continue
                index = await asyncio.to_thread(self._place.open)
            except Exception as error:  # whatever it is, the old state is served on
                self._metrics.reloads.labels("failed").inc()
                if str(error) != logged:
                    _log.error("still serving generation %d: %s", self.index.manifest.generation, error)
                logged = str(error)
                continue
            logged, self._seen, self.index = None, stamp, index
            self._metrics.reloads.labels("done").inc()
            _log.info("serving generation %d, %d documents", index.manifest.generation, len(index))


def id_of(index: Searchable, text: str) -> int | str:
    """An id that came as text, of the kind that the index has."""
    return int(text) if index.manifest.settings.ids == "int" and _NUMBER_ID.fullmatch(text) else text
