"""The text side of open_clip models (an optional package)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lexlip.errors import ConfigError
from lexlip.models.towers.align import find_offsets, surface
from lexlip.models.towers.open_clip_side import architecture, create
from lexlip.models.towers.reference import Reference
from lexlip.models.towers.text import TextBackbone, TextOutputs, as_offsets


def load_open_clip_texts(reference: Reference) -> OpenClipTexts:
    """The text side of an open_clip model.

    Raises:
        ConfigError: as for its image side, or its text side is a model of Hugging Face, or its tokenizer cannot be had.
    """
    open_clip, model = create(reference, "text")
    text = getattr(model, "text", model)
    if getattr(text, "ln_final", None) is None or getattr(text, "cls_emb", None) is not None:
        raise ConfigError(f"tower {reference}: its text side gives no states of tokens; take an hf: one")
    try:
        tokenizer = open_clip.get_tokenizer(architecture(reference)[0])
    except Exception as error:  # transformers and the hub raise their own kinds
        raise ConfigError(f"tower {reference}: its tokenizer cannot be loaded: {error}") from error
    return OpenClipTexts(model, text, tokenizer)


class _Tokenizer:
    """What the rest asks of a tokenizer, of one of open_clip: it tells no characters of its tokens."""

    is_fast = False

    def __init__(self, tokenizer: Any):
        self.inner = tokenizer
        wrapped = getattr(tokenizer, "tokenizer", None)  # HFTokenizer's
        if wrapped is not None and hasattr(wrapped, "get_vocab"):
            self.vocabulary: dict[str, int] = wrapped.get_vocab()
            self.special, self.end = set(wrapped.all_special_ids), wrapped.eos_token_id or wrapped.sep_token_id
            self.count = lambda text: len(wrapped(tokenizer.clean_fn(text), verbose=False)["input_ids"])
            self.surfaces = lambda ids: [surface(token) for token in wrapped.convert_ids_to_tokens(ids)]
        elif hasattr(tokenizer, "encoder"):
            self.vocabulary, self.special = tokenizer.encoder, set(tokenizer.all_special_ids)
            self.end = tokenizer.eot_token_id
            self.count = lambda text: len(tokenizer.encode(text)) + len((tokenizer.sot_token_id, self.end))
            self.surfaces = lambda ids: [tokenizer.decode([number]) for number in ids]
        else:
            raise ConfigError(f"{type(tokenizer).__name__} of open_clip is not known here; take the model's hf: folder")

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def length(self, ids: list[int]) -> int:
        """Tokens of a row up to its end token: what follows is padding."""
        return ids.index(self.end) + 1 if self.end in ids else len(ids)


class OpenClipTexts(TextBackbone):
    """The text side of an open_clip model.

    Pooled is open_clip's `encode_text`; states are those of the last block, normalised by the model's own last norm and
    not projected.
    """

    def __init__(self, model: nn.Module, text: nn.Module, tokenizer: Any):
        super().__init__()
        self.model: Any = model
        self.tokenizer = _Tokenizer(tokenizer)
        self.__dict__["text"] = text  # the model, or a part of it, whose weights it has once
        self.text: Any
        self.max_length = int(tokenizer.context_length)
        self.config = {"max_length": self.max_length, "pooling": "encode_text"}

    def forward(self, texts: list[str]) -> TextOutputs:
        ids = self.tokenizer.inner(texts).to(next(self.model.parameters()).device)
        found: list[Tensor] = []
        hook = self.text.ln_final.register_forward_hook(lambda module, given, states: found.append(states))
        try:
            pooled = self.model.encode_text(ids)
        finally:
            hook.remove()
        rows = ids.tolist()
        lengths = [self.tokenizer.length(row) for row in rows]
        offsets = as_offsets([find_offsets(text, self.tokenizer.surfaces(row)) for text, row in zip(texts, rows)])
        offsets = offsets.to(ids.device)
        inside = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
        special = torch.isin(ids, torch.tensor(sorted(self.tokenizer.special), device=ids.device))
        cut = torch.tensor([length >= self.max_length for length in lengths], device=ids.device)
        return TextOutputs(ids, found[0], offsets, inside & ~special & (offsets[..., 1] > 0), pooled, cut)

    def cut_texts(self, texts: Sequence[str]) -> int:
        return sum(self.tokenizer.count(text) > self.max_length for text in texts)

    def embeddings(self) -> Tensor:
        return self.text.token_embedding.weight.detach()
