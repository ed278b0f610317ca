"""The work of a request, in threads: the loop that answers never waits for a model or an index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from lexlip.index import Hit, Index, IndexingError, Share
from lexlip.index.queries import bag_of, bag_of_encoded
from lexlip.models.retrieval import LexiconModel
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import Limits
from lexlip.serve.metrics import Metrics
from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image

Bag = tuple[np.ndarray, np.ndarray]
_Result = TypeVar("_Result")


class Searcher:
    """A model and threads.

    Three pools. Images are decoded one at a time, because a decoded one may take a gigabyte; those that wait for the
    model are resized already. The model runs one query at a time on all the threads of torch, because a tokenizer is
    not safe in several threads. Searches, short and without the interpreter's lock, run side by side.

    Raises:
        IndexingError: the model has no tokenizer.
    """

    def __init__(self, model: LexiconModel, limits: Limits, metrics: Metrics):
        if model.tokenizer is None:
            raise IndexingError("the model has no tokenizer, so it reads no texts; save one in its folder")
        self._model, self._limits, self._metrics = model, limits, metrics
        self._transform = model.image_transform()
        self._terms: dict[str, int] = model.tokenizer.get_vocab()
        self._words = {term: word for word, term in self._terms.items()}
        self._pools = {
            stage: ThreadPoolExecutor(threads, thread_name_prefix=stage)
            for stage, threads in (("decode", 1), ("encode", 1), ("search", limits.threads))
        }

    def warm_up(self, index: Index) -> None:
        """Load what is compiled or loaded on first use."""
        index.search(bag_of("a", self._model), 1, threads=1)

    async def bag(self, kind: str, query: Any) -> tuple[Bag, list[str]]:
        """A query's terms and weights, and those of its words that the vocabulary lacks.

        Args:
            kind, query: as `lexlip.serve.bodies.BodyReader` gives them.

        Raises:
            Refusal: 422 for an image that cannot be decoded.
        """
        if kind == "text":
            return await self._run("encode", partial(bag_of, query, self._model)), []
        if kind == "image":
            pixels = await self._run("decode", partial(self._pixels, query))
            return await self._run("encode", lambda: bag_of_encoded(self._model.encode_image(pixels[None])[0])), []
        if kind == "words":
            known = {self._terms[word]: weight for word, weight in query.items() if word in self._terms}
            return bag_of(known), [word for word in query if word not in self._terms]
        return bag_of({int(term): weight for term, weight in query.items()}), []

    async def search(self, index: Index, bag: Bag, k: int, drop: float) -> list[Hit]:
        """See `Index.search`."""
        return await self._run("search", partial(index.search, bag, k, drop=drop, threads=1))

    async def explain(self, index: Index, bag: Bag, id: int | str) -> list[Share]:
        """See `Index.explain`; with the terms' words."""
        shares = await self._run("search", partial(index.explain, bag, id))
        return [share._replace(word=self._words.get(share.term)) for share in shares]

    def close(self) -> None:
        """Let the threads end."""
        for pool in self._pools.values():
            pool.shutdown()

    async def _run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        with self._metrics.stages.labels(stage).time():
            return await asyncio.get_running_loop().run_in_executor(self._pools[stage], work)

    def _pixels(self, data: bytes) -> Tensor:
        """(3, H, W), as the model takes it."""
        try:
            return self._transform(open_image(data, self._model.least_side, self._limits.max_pixels))
        except BrokenImage as error:
            raise Refusal(422, "broken_picture", f"the image {error}", ("image",)) from error
