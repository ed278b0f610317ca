"""A model of frozen towers and trained heads, used like every other.

B batch, L image tokens, T word pieces, V terms of the vocabulary, E width of the dense reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lexlip.errors import CheckpointError, EncodingError
from lexlip.models.attribution import MEAN, Box, Pooling, TextAttribution, seen
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.heads import DenseHeads, LexiconHeads, TextBatch
from lexlip.models.inputs import check_ids
from lexlip.models.retrieval import LexiconModel
from lexlip.models.towers import ImageTower, TextTower, load_image_tower, load_text_tower
from lexlip_data.loading.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_CARD = (Path(__file__).parents[1] / "card_lexicon.md").read_text(encoding="utf-8")


class FrozenLexLIP(LexiconModel, tags=["sparse-retrieval"], model_card_template=MODEL_CARD):
    """Heads, and the towers once they are needed.

    Args:
        config: shapes of the heads and references of the towers.
        tokenizer: of the lexicon.
        image_dropout, text_dropout: of the features, in training.

    Attributes:
        lexicon_heads: None in a dense reference alone.
        dense_heads: None where no dense reference comes along.
    """

    head: ClassVar[str] = "lexicon"
    cut_to_length_one: ClassVar[bool] = True
    config: FrozenConfig  # type: ignore[assignment]  # of another kind than that of trained towers

    def __init__(
        self, config: FrozenConfig, tokenizer: PreTrainedTokenizerBase | None = None, image_dropout: float = 0.0,
        text_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        dropout = (image_dropout, text_dropout)
        self.lexicon_heads = LexiconHeads(config, *dropout) if config.head == "lexicon" else None
        self.dense_heads = DenseHeads(config, *dropout) if config.embed_dim else None
        # No submodules: their weights are not this model's, and a training has none.
        self.__dict__["_towers"] = {}
        self._towers: dict[str, Any]
        self.folder: Path | None = None
        self.trust_sources = True

    # --- towers ---

    @property
    def image_tower(self) -> ImageTower:
        """Loaded on first use.

        Raises:
            ConfigError, CheckpointError: it cannot be loaded, or is not the one that the heads were trained with.
        """
        return self._tower("image", load_image_tower)

    @property
    def text_tower(self) -> TextTower:
        """As `image_tower`; a model with a table has none."""
        return self._tower("text", partial(load_text_tower, lexicon=self.tokenizer))

    def _tower(self, side: str, load: Callable[..., Any]) -> Any:
        if side not in self._towers:
            reference = getattr(self.config, f"{side}_tower")
            if not reference:
                raise EncodingError(f"this model has no {side} tower")
            tower = load(reference, trust_sources=self.trust_sources, folder=self.folder)
            known = self.config.tower_facts.get(side, {})
            if side in self.config.embedded:  # maybe in fewer bits
                known = {**known, "weights": known["stored"]} if "stored" in known else {}
            _check_same(side, reference, tower.facts(), known)
            self._towers[side] = tower.to(self.device)
        return self._towers[side]

    def _apply(self, fn, recurse: bool = True):
        for tower in self._towers.values():
            tower._apply(fn)
        return super()._apply(fn, recurse)

    # --- folders ---

    def preprocessing(self) -> dict:
        """What the image tower said of it; where towers lie in the folder they have a description of their own."""
        return {"image_processor_type": "tower", **self.config.tower_facts.get("image", {}).get("preprocessing", {})}

    def opened_from(self, folder: Path, trust_sources: bool) -> None:
        self.folder, self.trust_sources = folder, trust_sources

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        self.folder = save_directory

    # --- as `RetrievalModel` asks ---

    @property
    def widths(self) -> dict[str, int]:
        lexicon = {"lexicon": self.config.vocab_size} if self.lexicon_heads is not None else {}
        return {**lexicon, **({"dense": self.config.embed_dim} if self.dense_heads is not None else {})}

    @property
    def needs_text_tower(self) -> bool:
        """Whether texts go through a tower, or are looked up in a table."""
        return self.config.text_head != "table"

    def image_transform(self) -> Callable[[Image.Image], Tensor]:
        return self.image_tower.transform

    @cached_property
    def _pixels(self) -> tuple[int, ...]:
        """The shape of what `image_transform` gives."""
        return tuple(self.image_transform()(Image.new("RGB", (8, 8))).shape)

    def check_pixels(self, pixels: Tensor) -> None:
        wanted = self._pixels
        if tuple(pixels.shape[1:]) != wanted or not pixels.is_floating_point() or not torch.isfinite(pixels).all():
            raise EncodingError(
                f"a tensor of {pixels.dtype} and shape {tuple(pixels.shape)}: wanted are finite floats of shape "
                f"(B, {', '.join(map(str, wanted))}), a stack of what model.image_transform() gives"
            )

    def check_ids(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        if self.needs_text_tower:
            raise EncodingError("a model on a frozen text tower takes texts, not token ids")
        return check_ids(ids, mask, self.config.vocab_size, self.config.max_text_len)

    def vectors_of_pixels(self, pixels: Tensor, head: str) -> Tensor:
        return self._of_image(self.image_tower.features(pixels), head)

    def vectors_of_texts(self, texts: Sequence[str], head: str) -> Tensor:
        if self.needs_text_tower:
            return self._of_text(TextBatch(*self.text_tower.features(list(texts))), head)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.config.max_text_len, add_special_tokens=False,
            return_tensors="pt",
        )  # fmt: skip
        ids, mask = tokens["input_ids"].long(), tokens["attention_mask"]
        return self.vectors_of_ids(ids.to(self.device), mask.to(self.device), head)

    def vectors_of_ids(self, ids: Tensor, mask: Tensor, head: str) -> Tensor:
        if not ids.shape[1]:  # texts without a single word piece
            ids = mask = ids.new_zeros(len(ids), 1)
        return self._of_text(TextBatch(ids, mask.bool()), head)

    @property
    def context(self) -> int:
        facts = self.config.tower_facts.get("text", {}) if self.needs_text_tower else {}
        return facts.get("max_length", self.config.max_text_len)

    def cut_texts(self, texts: Sequence[str]) -> int:
        if self.needs_text_tower:
            return self.text_tower.cut_texts(texts)
        tokens = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return sum(len(ids) > self.config.max_text_len for ids in tokens["input_ids"])

    # --- where a term's weight comes from ---

    @property
    def patch_pooling(self) -> Pooling | None:
        return self.image_tower.pooling if self.lexicon_heads is not None else None

    def patch_states(self, pixels: Tensor) -> Tensor:
        heads = self._lexicon()
        cells = self.image_tower.cells(pixels)
        return heads.patch_states(cells, self.patch_pooling == MEAN)

    def term_logits(self, states: Tensor, ids: Tensor) -> Tensor:
        return self._lexicon().term_logits(states, ids)

    def seen(self, size: tuple[int, int]) -> Box:
        transform = self.image_transform()
        boxes = {seen(each, size) for each in getattr(transform, "transforms_of_towers", [transform])}
        if len(boxes) > 1:
            raise EncodingError("the towers of this model look at different parts of an image")
        return boxes.pop()

    def piece_weights(self, text: str, ids: Tensor) -> TextAttribution:
        """A table gives a text the sum of its pieces' rows; of a text tower's, the expansion belongs to the text."""
        heads = self._lexicon()
        if not self.needs_text_tower:
            own = self.tokenizer(
                text, truncation=True, max_length=self.config.max_text_len, add_special_tokens=False
            )["input_ids"]  # fmt: skip
            pieces = torch.tensor(list(dict.fromkeys(own)), dtype=torch.long, device=self.device)
            rows = self.vectors_of_ids(pieces[:, None], torch.ones_like(pieces)[:, None], self.head)
            names = self.tokenizer.convert_ids_to_tokens(pieces.tolist())
            return TextAttribution(names, rows[:, ids].T, "sum")
        texts = TextBatch(*self.text_tower.features([text]))
        own_weights, expansion = heads.text_side(texts, heads.positions(texts.terms), heads)
        pieces = texts.terms[texts.mask].unique()
        of_pieces = heads.scattered(own_weights)[0, ids, None] * (ids[:, None] == pieces)
        whole = heads.scattered(expansion)[0, ids, None]
        names = [*self.tokenizer.convert_ids_to_tokens(pieces.tolist()), "[text]"]
        return TextAttribution(names, torch.cat([of_pieces, whole], 1).float(), "sum")

    def _lexicon(self) -> LexiconHeads:
        if self.lexicon_heads is None:
            raise EncodingError("this is a dense reference, whose vectors have no words")
        return self.lexicon_heads

    # --- batches of cached features ---

    @staticmethod
    def text_batch(batch: Batch) -> TextBatch:
        """The texts of a batch of cached features."""
        return TextBatch(batch["text_ids"], batch["text_mask"], batch.get("text_states"), batch.get("text_pooled"))

    def vectors_of_features(self, kind: str, batch: Batch, head: str) -> Tensor:
        """Features of B of one "image" or "text" to (B, width of the head) float32, not normalised."""
        if kind == "image":
            return self._of_image(batch["image"], head)
        return self._of_text(self.text_batch(batch), head)

    def _of_image(self, features: Tensor, head: str) -> Tensor:
        if head == "dense":
            assert self.dense_heads is not None
            return self.dense_heads.encode_image(features)
        heads = self._lexicon()
        return heads.scattered(heads.encode_image(features).float())

    def _of_text(self, texts: TextBatch, head: str) -> Tensor:
        if head == "dense":
            if self.dense_heads is None or texts.pooled is None:
                raise EncodingError("dense vectors of texts need a text tower, and this model has a table")
            return self.dense_heads.encode_text(texts.pooled)
        heads = self._lexicon()
        return heads.scattered(heads.encode_text(texts).float())


def _check_same(side: str, reference: str, found: dict, known: dict) -> None:
    """Refuse a tower that gives other features than the heads were trained on."""
    found = {name: without_places(value) for name, value in found.items()}
    for name, value in without_places(known).items():
        if name != "stored" and found.get(name) != value:
            raise CheckpointError(
                f"the {side} tower {reference} is not the one that the heads were trained with: its {name} is "
                f"{str(found.get(name))[:60]}, not {str(value)[:60]}"
            )


def without_places(facts: Any) -> Any:
    """A tower's facts without where it lies; of several towers, of each."""
    if isinstance(facts, list):
        return [without_places(fact) for fact in facts]
    if not isinstance(facts, dict):
        return facts
    return {name: without_places(value) for name, value in facts.items() if name != "reference"}
