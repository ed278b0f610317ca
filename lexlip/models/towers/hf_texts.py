"""Text towers of Hugging Face: BERT and its kind, the text side of CLIP and SigLIP, sentence-transformers folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from lexlip.errors import ConfigError
from lexlip.models.towers.align import find_offsets, lower, surface
from lexlip.models.towers.hf_images import first_line, load_side, source_of
from lexlip.models.towers.reference import Reference
from lexlip.models.towers.sentence import Recipe, read_recipe
from lexlip.models.towers.text import TextBackbone, TextOutputs, as_offsets

# The text side alone of models with two sides, where its vector in their common space is found, and whether it was
# trained on texts padded to their full length without a mask.
TEXT_SIDES = {
    "clip": ("CLIPTextModelWithProjection", "text_embeds", False),
    "clip_text_model": ("CLIPTextModelWithProjection", "text_embeds", False),
    "metaclip_2": ("MetaClip2TextModelWithProjection", "text_embeds", False),
    "siglip": ("SiglipTextModel", "pooler_output", True),
    "siglip_text_model": ("SiglipTextModel", "pooler_output", True),
    "siglip2": ("Siglip2TextModel", "pooler_output", True),
    "siglip2_text_model": ("Siglip2TextModel", "pooler_output", True),
}
LONGEST = 512  # tokens, of models that tell no limit


def load(reference: Reference) -> HFTexts:
    """A text model of a folder or a name on the hub; one with a modules.json pools as that says.

    Raises:
        ConfigError: it cannot be found, is no text model, or pools in a way that is not known here.
        CheckpointError: its weights are not all there.
    """
    recipe = read_recipe(reference)
    if recipe:
        reference = recipe.transformer
    model, side = load_side(reference, TEXT_SIDES, "vision_config", "input_ids")
    _, pooled, full = side or (None, None, False)
    if not side and hasattr(model, "pooler"):
        model.pooler = None  # BERT's, of its next sentence task
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source_of(reference))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"tower {reference}: its tokenizer cannot be loaded ({first_line(error)}); put its files beside the weights"
        ) from error
    _check_tokenizer(tokenizer, model, reference)
    return HFTexts(model, tokenizer, pooled, full, recipe)


def _check_tokenizer(tokenizer: Any, model: Any, reference: Reference) -> None:
    """Refuse what transformers makes up where a folder has no tokenizer, and one of another model."""
    vocabulary = tokenizer.get_vocab()
    if vocabulary.keys() <= set(tokenizer.all_special_tokens):
        raise ConfigError(
            f"tower {reference} has no tokenizer; put its files, such as tokenizer.json, beside the weights"
        )
    entries = model.get_input_embeddings().num_embeddings
    if max(vocabulary.values()) >= entries:
        raise ConfigError(
            f"tower {reference}: its tokenizer has {len(vocabulary)} entries and its weights have {entries}; they "
            "are not of one model"
        )
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"tower {reference}: its tokenizer has no padding token; set pad_token in tokenizer_config.json"
        )


class HFTexts(TextBackbone):
    """A Hugging Face text model; states are its `last_hidden_state`.

    Pooled is the vector of CLIP's or SigLIP's common space, what a sentence-transformers recipe makes of the states,
    or else the mean of the states, special tokens among them, as sentence-transformers takes it of a plain model.
    """

    def __init__(self, model: Any, tokenizer: Any, pooled: str | None, full: bool, recipe: Recipe | None):
        super().__init__()
        self.model, self.tokenizer, self.pooled, self.full = model, tokenizer, pooled, full
        self.recipe = recipe or Recipe.plain()
        limits = [tokenizer.model_max_length, _positions(model.config), self.recipe.max_length or LONGEST]
        if full or pooled or recipe:
            limits[2] = self.recipe.max_length or limits[1]
        self.max_length = int(min(limits))
        pooling: dict = {"pooling": pooled} if pooled else {"pooling": self.recipe.as_json()}
        self.config = {"max_length": self.max_length, **pooling}

    def forward(self, texts: list[str]) -> TextOutputs:
        device = next(self.model.parameters()).device
        read = self._prepared(texts)
        tokens = self.tokenizer(
            read, padding="max_length" if self.full else True, truncation=True, max_length=self.max_length,
            return_special_tokens_mask=True, return_offsets_mapping=self.tokenizer.is_fast, return_attention_mask=True,
            return_tensors="pt",
        )  # fmt: skip
        ids, attention = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        output = self.model(input_ids=ids, attention_mask=None if self.full else attention)
        offsets = tokens["offset_mapping"] if self.tokenizer.is_fast else self._search(read, tokens["input_ids"])
        offsets = offsets.to(device) - len(self.recipe.prompt)
        real = (tokens["special_tokens_mask"] == 0).to(device) & attention.bool() & (offsets[..., 1] > 0)
        if self.pooled:
            pooled = getattr(output, self.pooled)
        else:
            counted = attention.bool()
            if not self.recipe.include_prompt and self.recipe.prompt:
                counted &= real | (offsets[..., 1] + len(self.recipe.prompt) == 0)
            pooled = self.recipe(output.last_hidden_state, counted)
        cut = attention.sum(1) >= self.max_length
        return TextOutputs(ids, output.last_hidden_state, offsets.clamp(min=0), real, pooled, cut)

    def cut_texts(self, texts: Sequence[str]) -> int:
        tokens = self.tokenizer(self._prepared(texts), padding=False, truncation=False, verbose=False)
        return sum(len(row) > self.max_length for row in tokens["input_ids"])

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        read = [lower(text) for text in texts] if self.recipe.lower else texts
        return [self.recipe.prompt + text for text in read]

    def embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight.detach()[: len(self.tokenizer)]

    def _search(self, texts: list[str], ids: Tensor) -> Tensor:
        rows = [self.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
        return as_offsets([find_offsets(text, [surface(token) for token in row]) for text, row in zip(texts, rows)])


def _positions(config: Any) -> int:
    """How many tokens the positions allow."""
    count = getattr(config, "max_position_embeddings", None)
    if count is None:
        return LONGEST
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "data2vec-text"):
        return count - config.pad_token_id - 1  # their first position comes after the padding's
    return count
