"""The work of a request, in threads: the loop that answers never waits for a model or an index."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from lexlip.errors import EncodingError
from lexlip.index import Hit, IndexingError, Share
from lexlip.index.places import Searchable
from lexlip.index.queries import Bag, bag_of, bag_of_encoded
from lexlip.index.query_words import TermQuery, Vocabulary, parse_query, resolve
from lexlip.index.unpacked import prefer_compiled
from lexlip.models.attribution import Box, patch_weights, saturated_weights
from lexlip.models.retrieval import LexiconModel
from lexlip.serve.decode import Decoders
from lexlip.serve.errors import Refusal
from lexlip.serve.limits import Limits
from lexlip.serve.metrics import Metrics
from lexlip.serve.photos import Photos, refused
from lexlip.serve.schemas import PatchesAnswer
from lexlip.serve.vocabulary import WordCount, WordsOfTerms

_Result = TypeVar("_Result")
_PATCHES_KEPT = 32  # photos whose patches are kept, less than a megabyte each


class Searcher:
    """A model, threads, and processes that decode.

    Images are decoded in processes that can be killed; those that wait for the model are resized already. The model
    runs one query at a time on all the threads of torch, because a tokenizer is not safe in several threads; of the
    images one at most waits in its line, so that a text waits for one image, however many there are. Searches, short
    and without the interpreter's lock, run side by side. Suggestions have one thread: they hold that lock.

    Raises:
        IndexingError: the model has no tokenizer.
    """

    def __init__(self, model: LexiconModel, limits: Limits, metrics: Metrics):
        if model.tokenizer is None:
            raise IndexingError("the model has no tokenizer, so it reads no texts; save one in its folder")
        self._model, self._limits, self._metrics = model, limits, metrics
        self._transform = model.image_transform()
        self._query_words = Vocabulary(model)
        self.vocabulary = WordsOfTerms(self._query_words.of)
        self.patch_pooling = model.patch_pooling
        self._patches: OrderedDict[str, tuple[Box, Tensor]] = OrderedDict()
        self._pools = {
            stage: ThreadPoolExecutor(threads, thread_name_prefix=stage)
            for stage, threads in (("encode", 1), ("search", limits.threads), ("suggest", 1))
        }
        self.decoders = Decoders(limits.decoders, limits.decode_seconds, limits.decode_memory)
        self._one_image = asyncio.Lock()
        self._one_photo = asyncio.Lock()

    def warm_up(self, index: Searchable) -> None:
        """Load what is compiled or loaded on first use."""
        prefer_compiled()
        hits = index.search(bag_of("a", self._model), 1, threads=1)
        index.document_terms([hit.id for hit in hits], 1)

    async def asked(self, kind: str, query: Any, conditions: dict[str, dict[str, float]] | None = None) -> TermQuery:
        """A query's terms and weights.

        Args:
            kind, query: as `lexlip.serve.bodies.BodyReader` gives them.
            conditions: by word, as `Index.search` names them.

        Raises:
            IndexingError: a query that cannot be read.
            Refusal: 422 for an image that cannot be decoded, 503 where too many wait for that.
        """
        unknown: dict[str, None] = {}
        by_term = {name: self._known(words, unknown) for name, words in (conditions or {}).items()}
        if kind == "query":
            found = await self._run("encode", lambda: resolve(parse_query(query), self._model, self._query_words))
            merged = {name: {**found.conditions[name], **by_term.get(name, {})} for name in found.conditions}
            return TermQuery(found.bag, merged, [*unknown])
        if kind == "words":
            return TermQuery(bag_of(self._known(query, unknown)), by_term, [*unknown])
        return TermQuery(await self._bag(kind, query), by_term, [*unknown])

    async def _bag(self, kind: str, query: Any) -> Bag:
        if kind == "text":
            return await self._run("encode", partial(bag_of, query, self._model))
        if kind == "image":
            with self._metrics.stages.labels("decode").time():
                work = self.decoders.image(query, self._model.least_side, self._limits.max_pixels)
                image = await refused(work, "the image", ("image",))
            pixels = self._transform(image)
            async with self._one_image:
                return await self._run("encode", lambda: bag_of_encoded(self._model.encode_image(pixels[None])[0]))
        return bag_of({int(term): weight for term, weight in query.items()})

    def _known(self, words: dict[str, float], unknown: dict[str, None]) -> dict[int, float]:
        unknown.update(dict.fromkeys(word for word in words if word not in self.vocabulary.terms))
        return {self.vocabulary.terms[word]: value for word, value in words.items() if word not in unknown}

    async def search(self, index: Searchable, asked: TermQuery, k: int, drop: float) -> list[Hit]:
        """See `Index.search`."""
        given: dict[str, Any] = {name: words for name, words in asked.conditions.items() if words}
        return await self._run("search", partial(index.search, asked.bag, k, drop=drop, threads=1, **given))

    async def words_of(self, index: Searchable, hits: list[Hit], limit: int) -> list[list[tuple[str, float]]]:
        """The heaviest words of each hit, and their weights as stored."""
        ids = [hit.id for hit in hits]
        return await self._run("search", lambda: list(map(self.vocabulary.named, index.document_terms(ids, limit))))

    async def suggest(self, index: Searchable, prefix: str, limit: int) -> list[WordCount]:
        """See `WordsOfTerms.suggest`."""
        return await self._run("suggest", partial(self.vocabulary.suggest, index, prefix, limit))

    async def explain(self, index: Searchable, bag: Bag, id: int | str) -> list[Share]:
        """See `Index.explain`; with the terms' words."""
        shares = await self._run("search", partial(index.explain, bag, id))
        return [share._replace(word=self.vocabulary.words.get(share.term)) for share in shares]

    async def patches(self, photos: Photos, id: int | str, words: list[str]) -> PatchesAnswer:
        """Where on a document's photo some words are seen; words that the vocabulary lacks are left out.

        One photo at a time: what is decoded for it has some megabytes.

        Raises:
            Refusal: 404, it has no photo; 422, the model says nothing of patches, or the photo cannot be decoded.
        """
        if self.patch_pooling is None:
            raise Refusal(422, "no_patches", "this model's image side says nothing of patches", ("patches",))
        file = await asyncio.to_thread(photos.file, id)
        async with self._one_photo:
            if file.stamp not in self._patches:
                image = await photos.pixels(file)
                try:
                    self._patches[file.stamp] = await self._run("encode", partial(self._states, image))
                except EncodingError as error:  # of a tower whose tokens make no grid
                    raise Refusal(422, "no_patches", str(error), ("patches",)) from error
            self._patches.move_to_end(file.stamp)
            while len(self._patches) > _PATCHES_KEPT:
                self._patches.popitem(last=False)
            box, states = self._patches[file.stamp]
            known = [word for word in dict.fromkeys(words) if word in self.vocabulary.terms]
            maps = await self._run("encode", partial(self._maps, states, known))
        return PatchesAnswer(**box._asdict(), pooling=self.patch_pooling, maps=maps)

    def _states(self, image: Image.Image) -> tuple[Box, Tensor]:
        with torch.no_grad():
            pixels = self._transform(image)[None].to(self._model.device)
            return self._model.seen(image.size), self._model.patch_states(pixels)[0]

    def _maps(self, states: Tensor, words: list[str]) -> dict[str, list[list[float]]]:
        if not words:
            return {}
        with torch.no_grad():
            weights = saturated_weights(self._model, patch_weights(self._model, states, words))
        return dict(zip(words, weights.double().mul(1e4).round().div(1e4).tolist()))

    async def close(self) -> None:
        """Let the threads end, and kill the processes; waits for none that hangs."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        await self.decoders.close()

    async def _run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        with self._metrics.stages.labels(stage).time():
            return await asyncio.get_running_loop().run_in_executor(self._pools[stage], work)
