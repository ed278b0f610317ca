"""What every model here is built from: an image tower, a text tower, a tokenizer, and a head that a subclass gives.

B batch, L tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from lexlip.errors import ConfigError
from lexlip.models.config import ModelConfig
from lexlip.models.encoders import ImageEncoder, TextEncoder
from lexlip.models.hub import FolderModel
from lexlip.models.inputs import check_ids, check_pixels, check_texts, listed
from lexlip_data.errors import BrokenImage
from lexlip_data.loading.sentences import mark_sentences
from lexlip_data.loading.transforms import build_transform
from lexlip_data.sources.images import open_image, to_rgb, upright

BATCH_SIZE = 256  # rows that are encoded at once, if a user says nothing
ImageLike = Image.Image | str | Path


class TwoTowers(FolderModel):
    """Image tower and text tower; a subclass adds the head and says which vectors it makes.

    Args:
        config: shapes of everything; weights start random.
        tokenizer: for `encode_text` with strings; may be set later.
        vit_pretrained: True: the image tower's weights from the hub; a path: from that file.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None, vit_pretrained: bool | str = False
    ):
        super().__init__()
        if config.head != self.head:
            raise ConfigError(f"{type(self).__name__} has the {self.head} head, but its config says {config.head!r}")
        self.config = config
        self.tokenizer = tokenizer
        self.image_encoder = ImageEncoder(
            config.vit, config.image_size, config.vit_kwargs, vit_pretrained, config.image_norm_eps
        )
        self.text_encoder = TextEncoder(BertConfig(**config.text), corner_tokens=config.corner_tokens)
        self.make_head()

    # --- a head's own ---

    def make_head(self) -> None:
        """Add the head's modules to the towers; called once, by the constructor."""
        raise NotImplementedError

    def start_head(self, bert: BertForMaskedLM | None) -> None:
        """Take over what a pretrained BERT holds for the head; called once, after the towers are loaded."""

    def vectors_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) token ids and their mask, 0 at padding, to (B, width of the vectors) float32, not normalised."""
        raise NotImplementedError

    def vectors_long(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Like `vectors_text`, of long texts in training, to (B, 1 + C, width): and one vector per corner token."""
        raise NotImplementedError

    def vectors_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels to (B, width of the vectors) float32, not normalised."""
        raise NotImplementedError

    # --- for users ---

    @torch.no_grad()
    def encode_text(
        self, texts: str | Sequence[str] | Tensor, attention_mask: Tensor | None = None, normalize: bool = True,
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:  # fmt: skip
        """Captions to retrieval vectors.

        Args:
            texts: B strings, or (B, L) token ids with their `attention_mask`. B may be 0; one string alone is B = 1.
            normalize: divide by the L2 norm, so that dot products are cosines.
            batch_size: how many of them are encoded at once.

        Returns:
            (B, width of the vectors) float32, on the model's device.

        Raises:
            TypeError: something else among the strings, or no list.
            ValueError: strings without a tokenizer, or batch_size below 1.
            EncodingError: token ids without a mask, of other words or another shape; half a character in a text.
        """
        if isinstance(texts, Tensor):
            words, positions = self.config.vocab_size, self.text_encoder.config.max_position_embeddings
            mask = check_ids(texts, attention_mask, words, positions - self.config.corner_tokens)
            encode = lambda rows: self.vectors_text(texts[rows].to(self.device), mask[rows].to(self.device))
        else:
            if self.tokenizer is None:
                raise ValueError("this model has no tokenizer: pass token ids and their mask, or set model.tokenizer")
            texts = listed(texts, str, "a string")
            check_texts(texts)
            encode = lambda rows: self.vectors_text(*self._tokenized(texts[rows]))
        return self._encoded(encode, len(texts), batch_size, normalize)

    def _tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            self._marked(texts), padding=True, truncation=True, max_length=self.config.max_words, return_tensors="pt"
        )
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    def _encoded(self, encode: Callable[[slice], Tensor], count: int, batch_size: int, normalize: bool) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        width = self.config.vocab_size if self.config.embed_dim is None else self.config.embed_dim
        training = self.training
        try:
            self.eval()
            parts = [encode(slice(begin, begin + batch_size)) for begin in range(0, count, batch_size)]
        finally:
            self.train(training)
        vectors = torch.cat(parts) if parts else torch.zeros(0, width, device=self.device)
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the model reads."""
        lengths = [len(ids) for ids in self.tokenizer(self._marked(texts), verbose=False)["input_ids"]]
        return sum(length > self.config.max_words for length in lengths)

    def _marked(self, texts: Sequence[str]) -> list[str]:
        if self.config.sentence_sep:
            return [mark_sentences(text, self.tokenizer.sep_token) for text in texts]
        return list(texts)

    @torch.no_grad()
    def encode_image(
        self, images: ImageLike | Sequence[ImageLike] | Tensor, normalize: bool = True, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Images to retrieval vectors.

        Args:
            images: B PIL images or paths of files, or (B, 3, H, W) normalised pixels. B may be 0; one image or path
                alone is B = 1.
            normalize: divide by the L2 norm, so that dot products are cosines.
            batch_size: how many of them are decoded and encoded at once.

        Returns:
            (B, width of the vectors) float32, on the model's device.

        Raises:
            TypeError: something else among the images, or no list.
            ValueError: batch_size below 1.
            EncodingError: a tensor of another shape or type, or with values that no normalised pixels have.
            OSError: a file that cannot be read.
            BrokenImage: a file that is no image; the message names it.
        """
        if isinstance(images, Tensor):
            check_pixels(images, self.image_encoder.patch)
            encode = lambda rows: self.vectors_image(images[rows].to(self.device))
        else:
            images = listed(images, ImageLike, "a PIL image or the path of one")
            transform = build_transform("vit", self.config.image_size)
            encode = lambda rows: self.vectors_image(
                torch.stack([transform(_opened(image)) for image in images[rows]]).to(self.device)
            )
        return self._encoded(encode, len(images), batch_size, normalize)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_encoder.word_embeddings.device


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(upright(image))
    try:
        return open_image(Path(image).read_bytes())
    except BrokenImage as error:
        raise BrokenImage(f"{image}: {error}") from error
