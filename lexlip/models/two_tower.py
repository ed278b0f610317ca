"""What every model here is built from: an image tower, a text tower, a tokenizer, and a head that a subclass gives.

B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.config import ModelConfig
from lexlip.models.inputs import check_ids, check_pixels
from lexlip.models.retrieval import RetrievalModel
from lexlip_data.loading.sentences import mark_sentences
from lexlip_data.loading.transforms import build_pixels, build_transform, normalise

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, PreTrainedTokenizerBase


class TwoTowers(RetrievalModel):
    """Image tower and text tower; a subclass adds the head and says which vectors it makes.

    Args:
        config: shapes of everything; weights start random.
        tokenizer: for `encode_text` with strings; may be set later.
        vit_pretrained: True: the image tower's weights from the hub; a path: from that file.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None, vit_pretrained: bool | str = False
    ):
        # Here: timm and transformers' models take seconds, and models on frozen towers are opened through this class.
        from transformers import BertConfig

        from lexlip.models.encoders import ImageEncoder, TextEncoder

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

    # --- as `RetrievalModel` asks ---

    @property
    def widths(self) -> dict[str, int]:
        return {self.head: self.config.vocab_size if self.config.embed_dim is None else self.config.embed_dim}

    def image_transform(self) -> Callable[[Image.Image], Tensor]:
        return build_transform("vit", self.config.image_size)

    @property
    def least_side(self) -> int:
        return self.config.image_size

    def loader_transform(self) -> Callable[[Image.Image], Tensor]:
        return build_pixels("vit", self.config.image_size)

    def from_loader(self, pixels: Tensor) -> Tensor:
        return normalise(pixels.to(self.device))

    def check_pixels(self, pixels: Tensor) -> None:
        check_pixels(pixels, self.image_encoder.patch)

    def check_ids(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        positions = self.text_encoder.config.max_position_embeddings
        return check_ids(ids, mask, self.config.vocab_size, positions - self.config.corner_tokens)

    def vectors_of_texts(self, texts: Sequence[str], head: str) -> Tensor:
        return self.vectors_of_ids(*self._tokenized(texts), head)

    def vectors_of_ids(self, ids: Tensor, mask: Tensor, head: str) -> Tensor:
        return self.vectors_text(ids, mask)

    def vectors_of_pixels(self, pixels: Tensor, head: str) -> Tensor:
        return self.vectors_image(pixels)

    def _tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            self._marked(texts), padding=True, truncation=True, max_length=self.config.max_words, return_tensors="pt"
        )
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    def cut_texts(self, texts: Sequence[str]) -> int:
        tokens = self.tokenizer(self._marked(texts), verbose=False)
        return sum(len(ids) > self.config.max_words for ids in tokens["input_ids"])

    def _marked(self, texts: Sequence[str]) -> list[str]:
        if self.config.sentence_sep:
            return [mark_sentences(text, self.tokenizer.sep_token) for text in texts]
        return list(texts)
