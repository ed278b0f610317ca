"""What users call on any model here: images and texts to vectors, in batches.

B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lexlip.errors import EncodingError
from lexlip.models.attribution import Box, Pooling, TextAttribution, patch_weights, saturated_weights, seen, term_ids
from lexlip.models.hub import FolderModel
from lexlip.models.inputs import check_texts, check_vectors, listed
from lexlip.utils.devices import in_parts
from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image, to_rgb, upright

BATCH_SIZE = 256  # rows that are encoded at once, if a user says nothing
ImageLike = Image.Image | str | Path


class RetrievalModel(FolderModel):
    """Opens, cuts into batches, normalises; a subclass makes the vectors of a batch."""

    # --- a model's own ---

    @property
    def widths(self) -> dict[str, int]:
        """Width of the vectors of each head; the first is taken where none is named."""
        raise NotImplementedError

    def image_transform(self) -> Callable[[Image.Image], Tensor]:
        """From an RGB image to the tensor of which `encode_image` takes a stack; picklable for loader processes."""
        raise NotImplementedError

    @property
    def least_side(self) -> int:
        """Pixels of the shorter side that a decoder may leave of a larger image (`open_image`); 0: it decodes all."""
        return 0

    def loader_transform(self) -> Callable[[Image.Image], Tensor]:
        """As `image_transform`, in as few bytes as can be: for loader processes. See `from_loader`."""
        return self.image_transform()

    def from_loader(self, pixels: Tensor) -> Tensor:
        """A stack of what `loader_transform` gives to what `encode_image` takes, on the model's device."""
        return pixels.to(self.device)

    def check_pixels(self, pixels: Tensor) -> None:
        """Refuse what is no stack of such tensors.

        Raises:
            EncodingError: saying what was given and what is wanted.
        """
        raise NotImplementedError

    def check_ids(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Refuse what is not (B, L) token ids; gives their mask.

        Raises:
            EncodingError: saying what was given and what is wanted.
        """
        raise NotImplementedError

    def vectors_of_texts(self, texts: Sequence[str], head: str) -> Tensor:
        """B strings to (B, width of the head) float32, not normalised."""
        raise NotImplementedError

    def vectors_of_ids(self, ids: Tensor, mask: Tensor, head: str) -> Tensor:
        """(B, L) token ids and their mask, as `vectors_of_texts`."""
        raise NotImplementedError

    def vectors_of_pixels(self, pixels: Tensor, head: str) -> Tensor:
        """A stack of what `image_transform` gives to (B, width of the head) float32, not normalised."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Tokens of a text that the model reads."""
        return self.config.max_text_len

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the model reads."""
        raise NotImplementedError

    # --- for users ---

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode_text(
        self, texts: str | Sequence[str] | Tensor, attention_mask: Tensor | None = None, normalize: bool = True,
        batch_size: int = BATCH_SIZE, head: str | None = None,
    ) -> Tensor:  # fmt: skip
        """Captions to retrieval vectors.

        Args:
            texts: B strings, or (B, L) token ids with their `attention_mask`. B may be 0; one string alone is B = 1.
            normalize: divide by the L2 norm, so that dot products are cosines.
            batch_size: how many of them are encoded at once.
            head: of `widths`, where a model has several; None: the first.

        Returns:
            (B, width of the vectors) float32, on the model's device.

        Raises:
            TypeError: something else among the strings, or no list.
            ValueError: strings without a tokenizer, batch_size below 1, or no such head.
            EncodingError: token ids without a mask, of other words or another shape; half a character in a text.
        """
        head, order = self._head(head), None
        if isinstance(texts, Tensor):
            mask = self.check_ids(texts, attention_mask)
            encode = lambda rows: self.vectors_of_ids(texts[rows].to(self.device), mask[rows].to(self.device), head)
        else:
            if self.tokenizer is None:
                raise ValueError("this model has no tokenizer: pass token ids and their mask, or set model.tokenizer")
            texts = listed(texts, str, "a string")
            check_texts(texts)
            order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # a batch is as wide as its longest
            encode = lambda rows: self.vectors_of_texts([texts[row] for row in rows], head)
        return self._encoded(encode, order or range(len(texts)), batch_size, normalize, head)

    @torch.no_grad()
    def encode_image(
        self, images: ImageLike | Sequence[ImageLike] | Tensor, normalize: bool = True, batch_size: int = BATCH_SIZE,
        head: str | None = None,
    ) -> Tensor:  # fmt: skip
        """Images to retrieval vectors.

        Args:
            images: B PIL images or paths of files, or a stack of what `image_transform` gives: (B, 3, H, W) normalised
                pixels. B may be 0; one image or path alone is B = 1.
            normalize: divide by the L2 norm, so that dot products are cosines.
            batch_size: how many of them are decoded and encoded at once.
            head: of `widths`, where a model has several; None: the first.

        Returns:
            (B, width of the vectors) float32, on the model's device.

        Raises:
            TypeError: something else among the images, or no list.
            ValueError: batch_size below 1, or no such head.
            EncodingError: a tensor of another shape or type, or with values that no normalised pixels have.
            OSError: a file that cannot be read.
            BrokenImage: a file that is no image; the message names it.
        """
        head = self._head(head)
        if isinstance(images, Tensor):
            self.check_pixels(images)
            pixels_of = lambda rows: images[rows]
        else:
            images = listed(images, ImageLike, "a PIL image or the path of one")
            transform = self.image_transform()
            pixels_of = lambda rows: torch.stack([transform(_opened(images[row])) for row in rows])
        vectors_of = lambda pixels: self.vectors_of_pixels(pixels, head)
        encode = lambda rows: in_parts(vectors_of, pixels_of(rows).to(self.device), self.device)
        return self._encoded(encode, range(len(images)), batch_size, normalize, head)

    def _head(self, head: str | None) -> str:
        if head is not None and head not in self.widths:
            raise ValueError(f"head={head!r}: this model has {', '.join(self.widths)}")
        return head or next(iter(self.widths))

    def _encoded(
        self, encode: Callable[[Sequence[int]], Tensor], order: Sequence[int], batch_size: int, normalize: bool,
        head: str,
    ) -> Tensor:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        with _evaluating(self):
            batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
            parts = [encode(rows) for rows in batches]
        vectors = torch.cat(parts) if parts else torch.zeros(0, self.widths[head], device=self.device)
        if not isinstance(order, range):
            vectors = vectors[torch.tensor(order, device=vectors.device).argsort()]
        return F.normalize(vectors, dim=-1) if normalize else vectors


class LexiconModel(RetrievalModel):
    """A model whose vectors are weights of words.

    Attributes:
        cut_to_length_one: whether vectors that are cut to their heaviest terms are brought to length 1 again, because
            the model was trained on such; else the kept weights stay as they are.
    """

    cut_to_length_one: ClassVar[bool] = False

    @property
    def vocab_size(self) -> int:
        """V, the terms."""
        return self.config.vocab_size

    def for_other_libraries(self) -> dict[str, Any]:
        """What makes the folder a SparseEncoder of sentence-transformers, see `lexlip.integrations`."""
        if self.config.head != "lexicon":
            return {}
        module = "lexlip.integrations.sentence_transformers.LexLIPModule"
        return {
            "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module}],
            "config_sentence_transformers.json": {"model_type": "SparseEncoder", "similarity_fn_name": "dot"},
        }

    # --- a model's own ---

    @property
    def patch_pooling(self) -> Pooling | None:
        """How an image's logits come from those of its patches; None: from no patches."""
        return None

    def patch_states(self, pixels: Tensor) -> Tensor:
        """(B, 3, H', W') as `vectors_of_pixels` takes them to (B, H, W, D), what `term_logits` takes of each patch.

        Raises:
            EncodingError: `patch_pooling` is None.
        """
        raise NotImplementedError

    def term_logits(self, states: Tensor, ids: Tensor) -> Tensor:
        """(..., D) of `patch_states` to (..., N) logits of the terms `ids`; -inf for a term that is never active."""
        raise NotImplementedError

    def piece_weights(self, text: str, ids: Tensor) -> TextAttribution:
        """What the word pieces of a text add to N terms."""
        raise NotImplementedError

    def seen(self, size: tuple[int, int]) -> Box:
        """Which part of an image of such width and height the patches of `attribute` cover."""
        return seen(self.image_transform(), size)

    # --- for users ---

    @torch.no_grad()
    def attribute(
        self, image: ImageLike | Tensor, words: str | int | Sequence[str | int], saturated: bool = True
    ) -> Tensor:
        """Heat maps: what each patch of an image says of some terms.

        Args:
            image: a PIL image, the path of one, or what `image_transform` gives: (3, H', W') normalised pixels.
            words: N terms by name or number.
            saturated: give weights, `saturate` of the logits; else the logits.

        Returns:
            (N, H, W) float32 of the patches in the part of the image that the model looks at (`seen`). Where
            `patch_pooling` is "max", a map's maximum is the term's weight in `encode_image(image, normalize=False)`,
            unless [CLS] has a larger one. Where it is "mean", the mean of the logits is the term's logit.

        Raises:
            EncodingError: no such term, a tensor of another shape, or a model whose image side has no patches.
            OSError, BrokenImage: as `encode_image`.
        """
        ids = term_ids(self, words)
        with _evaluating(self):
            if not isinstance(image, Tensor):
                image = self.image_transform()(_opened(image))
            self.check_pixels(image[None])
            logits = patch_weights(self, self.patch_states(image[None].to(self.device))[0], ids.tolist())
        return saturated_weights(self, logits) if saturated else logits

    @torch.no_grad()
    def attribute_text(self, text: str, words: str | int | Sequence[str | int]) -> TextAttribution:
        """What each word piece of a text adds to some terms.

        Args:
            words: N terms by name or number.

        Raises:
            EncodingError: no such term, no tokenizer, or half a character in the text.
        """
        if self.tokenizer is None:
            raise EncodingError("this model has no tokenizer, which texts need; set model.tokenizer")
        check_texts([text])
        with _evaluating(self):
            return self.piece_weights(text, term_ids(self, words))

    def lexicon(self, vectors: Tensor, top_k: int = 10) -> list[list[tuple[str, float]]]:
        """The heaviest terms of each of (B, V) vectors, at most `top_k`, heaviest first, without terms of weight 0.

        Raises:
            ValueError: this model has no tokenizer.
            EncodingError: something else than (B, V) vectors, or `top_k` below 1.
        """
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer to name the terms; set model.tokenizer")
        vectors = check_vectors(vectors, self.vocab_size, top_k)
        top = vectors.topk(min(top_k, vectors.shape[-1]), dim=-1)
        rows = []
        for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            terms = self.tokenizer.convert_ids_to_tokens(ids)
            rows.append([(term, value) for term, value in zip(terms, values, strict=True) if value > 0])
        return rows


@contextmanager
def _evaluating(model: RetrievalModel) -> Iterator[None]:
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(upright(image))
    try:
        return open_image(Path(image).read_bytes())
    except BrokenImage as error:
        raise BrokenImage(f"{image}: {error}") from error
