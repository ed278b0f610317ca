"""The work of a request, in threads: the loop that answers never waits for a model or an index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from lexlip.index import Hit, Index, IndexingError, Share
from lexlip.index.queries import bag_of, bag_of_encoded
from lexlip.models.retrieval import LexiconModel
from lexlip.serve.decode import Decoders, DecodersBusy
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import Limits
from lexlip.serve.metrics import Metrics
from lexlip.serve.wording import without_python
from lexlip_data.errors import BrokenImage

LARGE = 512  # pixels
Bag = tuple[np.ndarray, np.ndarray]
_Result = TypeVar("_Result")


class Searcher:
    """A model, threads, and processes that decode.

    Images are decoded in processes that can be killed; those that wait for the model are resized already. The model
    runs one query at a time on all the threads of torch, because a tokenizer is not safe in several threads; of the
    images one at most waits in its line, so that a text waits for one image, however many there are. Searches, short
    and without the interpreter's lock, run side by side.

    Raises:
        IndexingError: the model has no tokenizer.
    """

    def __init__(self, model: LexiconModel, limits: Limits, metrics: Metrics):
        if model.tokenizer is None:
            raise IndexingError("the model has no tokenizer, so it reads no texts; save one in its folder")
        self._model, self._limits, self._metrics = model, limits, metrics
        self._terms: dict[str, int] = model.tokenizer.get_vocab()
        self._words = {term: word for word, term in self._terms.items()}
        self._pools = {
            stage: ThreadPoolExecutor(threads, thread_name_prefix=stage)
            for stage, threads in (("encode", 1), ("search", limits.threads))
        }
        self._decoders = Decoders(limits.decoders, limits.decode_seconds, limits.decode_memory)
        self._one_image = asyncio.Lock()

    def warm_up(self, index: Index) -> None:
        """Load what is compiled or loaded on first use."""
        index.search(bag_of("a", self._model), 1, threads=1)

    async def bag(self, kind: str, query: Any) -> tuple[Bag, list[str]]:
        """A query's terms and weights, and those of its words that the vocabulary lacks.

        Args:
            kind, query: as `lexlip.serve.bodies.BodyReader` gives them.

        Raises:
            Refusal: 422 for an image that cannot be decoded, 503 where too many wait for that.
        """
        if kind == "text":
            return await self._run("encode", partial(bag_of, query, self._model)), []
        if kind == "image":
            pixels = await self._pixels(query)
            async with self._one_image:
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

    async def close(self) -> None:
        """Let the threads end, and kill the processes; waits for none that hangs."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        await self._decoders.close()

    async def _run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        with self._metrics.stages.labels(stage).time():
            return await asyncio.get_running_loop().run_in_executor(self._pools[stage], work)

    async def _pixels(self, data: bytes) -> Tensor:
        """(3, H, W), as the model takes it."""
        size = self._model.least_side or LARGE  # a tower with a preprocessing of its own gets a large square
        try:
            with self._metrics.stages.labels("decode").time():
                square = await self._decoders.square(data, size, self._limits.max_pixels)
        except BrokenImage as error:
            raise Refusal(422, "broken_picture", f"the image: {without_python(str(error))}", ("image",)) from error
        except DecodersBusy as error:
            raise Refusal(
                503, "busy", "too many images are being decoded; try again", headers={"Retry-After": "1"}
            ) from error
        rows = np.frombuffer(square, dtype=np.uint8).reshape(size, size, 3)
        return self._model.image_transform()(Image.fromarray(rows))
