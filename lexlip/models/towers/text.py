"""Text towers: their tokens' states brought to the lexicon's word pieces, and their own vector of the whole text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lexlip.errors import ConfigError
from lexlip.models.towers.align import overlap_mean
from lexlip.models.towers.frozen import FrozenTower, hash_text
from lexlip.models.towers.reference import Reference, check_reference, parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_text_tower(
    reference: str, lexicon: PreTrainedTokenizerBase | None = None, *, trust_sources: bool = True,
    folder: str | Path | None = None,
) -> TextTower:  # fmt: skip
    """A frozen text tower by reference.

    Args:
        reference: as in docs/FROZEN.md: hf:, st:, open_clip:, or a folder or name on the hub.
        lexicon: a fast tokenizer whose word pieces are the terms; None: the tower's own, if it has BERT's kind.
        trust_sources: False: refuse what would be fetched by name and what lies outside `folder`.
        folder: that relative paths begin from.

    Raises:
        UserError: the reference is unknown or its files cannot be used; a lexicon is missing, or is a slow tokenizer.
    """
    if not trust_sources:
        check_reference(reference, folder)
    found = parse(reference, folder)
    if found.kind == "timm":
        raise ConfigError(
            f"tower {reference}: text towers are read from Hugging Face, sentence-transformers and open_clip; give the "
            "folder or name of such a model (hf:..., st:... or open_clip:...)"
        )
    if found.view:
        raise ConfigError(
            f"tower {reference}: text towers give token states and a pooled vector; leave out #{found.view}"
        )
    if found.kind == "open_clip":
        from lexlip.models.towers.open_clip_side import check_architecture
        from lexlip.models.towers.open_clip_texts import load_open_clip_texts

        if not trust_sources:
            check_architecture(found)
        return TextTower(found, load_open_clip_texts(found), lexicon)
    from lexlip.models.towers.hf_texts import load

    return TextTower(found, load(found), lexicon)


class TextFeatures(NamedTuple):
    """Texts by the word pieces of the lexicon, special tokens left out: B texts, T pieces, D width of a tower.

    Attributes:
        terms: (B, T) int64 ids of the lexicon's word pieces, 0 at padding.
        mask: (B, T) bool, False at padding.
        states: (B, T, D) float32 states of the tower's tokens, averaged over those that share a character with the
            word piece; 0 at padding.
        pooled: (B, D') float32 the tower's own vector of the whole text.
    """

    terms: Tensor
    mask: Tensor
    states: Tensor
    pooled: Tensor


class TextOutputs(NamedTuple):
    """What a backbone gives of B texts.

    Attributes:
        ids: (B, S) token ids.
        states: (B, S, D).
        offsets: (B, S, 2) characters of each token.
        real: (B, S) bool, False at padding and special tokens.
        pooled: (B, D').
        cut: (B,) bool, whether the text was longer than the tower reads.
    """

    ids: Tensor
    states: Tensor
    offsets: Tensor
    real: Tensor
    pooled: Tensor
    cut: Tensor


class TextBackbone(nn.Module):
    """A library's text model.

    Attributes:
        tokenizer: its own.
        config: what decides about its vectors besides the weights, as JSON.
    """

    tokenizer: Any
    config: dict

    def forward(self, texts: list[str]) -> TextOutputs:
        raise NotImplementedError

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the model reads."""
        raise NotImplementedError

    def embeddings(self) -> Tensor:
        """(entries of its tokenizer, width) of the tokens, before the first layer."""
        raise NotImplementedError


class TextTower(FrozenTower):
    """A text tower around a library's model, always in evaluation mode.

    Attributes:
        reference: loads the same tower again.
        width, pooled_width: D of `TextFeatures.states` and D' of `TextFeatures.pooled`.
        tokenizer: the tower's own.
        lexicon: the tokenizer whose word pieces are the terms.
    """

    def __init__(self, reference: Reference, backbone: TextBackbone, lexicon: Any = None):
        super().__init__()
        self.reference, self.backbone = str(reference), backbone
        self.tokenizer = backbone.tokenizer
        self.lexicon = _lexicon(lexicon, self.tokenizer, self.reference)
        self.same = describe_tokenizer(self.lexicon) == describe_tokenizer(self.tokenizer)
        self.specials = torch.tensor(sorted(self.lexicon.all_special_ids), dtype=torch.long)
        self.freeze()
        probe = self.features(["a"])
        self.width, self.pooled_width = probe.states.shape[2], probe.pooled.shape[1]

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> TextFeatures:
        """Texts to their features, without the word pieces that the tower had no room for.

        Those that are special tokens, [UNK] among them, are no terms and are left out, too.
        """
        texts = list(texts)
        if not texts:
            raise ConfigError("features of no texts were asked for; give at least one")
        outputs = self.backbone(texts)
        if self.same:
            terms, states, mask = outputs.ids, outputs.states.float(), outputs.real
        else:
            terms, places, mask = self._pieces(texts)
            last = outputs.offsets[..., 1].masked_fill(~outputs.real, 0).amax(1).cpu()
            mask = mask & ~(outputs.cut.cpu()[:, None] & (places[..., 0] >= last[:, None]))
            terms, places, mask = (part.to(outputs.states.device) for part in (terms, places, mask))
            states = overlap_mean(outputs.states.float(), outputs.offsets, outputs.real, places)
        mask = mask & ~torch.isin(terms, self.specials.to(terms.device))
        return TextFeatures(*_to_the_left(terms, mask, states), outputs.pooled.float())

    def _pieces(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T) ids of the lexicon's word pieces, (B, T, 2) their characters, (B, T) mask."""
        pieces = self.lexicon(
            texts, add_special_tokens=False, return_offsets_mapping=True, padding=False, truncation=False, verbose=False
        )
        ids = [torch.tensor(row, dtype=torch.long) for row in pieces["input_ids"]]
        places = [torch.tensor(row, dtype=torch.long).reshape(-1, 2) for row in pieces["offset_mapping"]]
        mask = [torch.ones(len(row), dtype=torch.bool) for row in ids]
        return pad_sequence(ids, True), pad_sequence(places, True), pad_sequence(mask, True)

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the tower reads."""
        return self.backbone.cut_texts(texts)

    def term_embeddings(self) -> Tensor | None:
        """(V, D) what the tower begins from for each word piece; None where the lexicon has other pieces."""
        return self.backbone.embeddings() if self.same else None

    def facts(self) -> dict:
        """What decides about the features, as JSON: reference, hash of the weights, both tokenizers, pooling."""
        return {
            "reference": self.reference, "weights": self.weights_hash, **self.backbone.config,
            "tokenizer": hash_text(describe_tokenizer(self.tokenizer)),
            "lexicon": hash_text(describe_tokenizer(self.lexicon)),
        }  # fmt: skip


def _to_the_left(terms: Tensor, mask: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Close the gaps of what is masked: (B, T) terms, (B, T) mask, (B, T, D) states, with the longest row's T."""
    order = torch.argsort(~mask, dim=1, stable=True)[:, : max(1, int(mask.sum(1).max())) if mask.numel() else 0]
    mask = mask.gather(1, order)
    terms = terms.gather(1, order).masked_fill(~mask, 0)
    states = states.gather(1, order[..., None].expand(-1, -1, states.shape[2])) * mask[..., None]
    if mask.shape[1] == 0:  # texts without a single word piece
        return (
            terms.new_zeros(len(terms), 1),
            mask.new_zeros(len(mask), 1),
            states.new_zeros(len(states), 1, states.shape[2]),
        )
    return terms, mask, states


def _lexicon(lexicon: Any, own: Any, reference: str) -> Any:
    if lexicon is None:
        if not is_wordpiece(own):
            raise ConfigError(
                f"tower {reference} has no BERT tokenizer, so its word pieces are no terms; give the lexicon's "
                "tokenizer"
            )
        lexicon = own
    if not lexicon.is_fast:
        raise ConfigError("the lexicon's tokenizer tells no characters of its word pieces; give a fast tokenizer")
    return lexicon


def is_wordpiece(tokenizer: Any) -> bool:
    return bool(tokenizer.is_fast) and json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] == "WordPiece"


def describe_tokenizer(tokenizer: Any) -> str:
    """All that decides about a tokenizer's output, but not how long it may be: equal for equal tokenizers."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**content, "truncation": None, "padding": None}, sort_keys=True)


def as_offsets(rows: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), -1, 2))
