"""What a model is built from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEADS = ("lexicon", "dense")
TEXT_SIDES = ("contextual", "in_context", "lookup")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# The official named configs' towers, under the names that timm gives the same weights.
OFFICIAL_NAMES = {
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit_base_patch16_224.in22k_ft_in22k",
    "google/vit-base-patch32-224-in21k": "vit_base_patch32_224.orig_in21k",
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224.orig_in21k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
}

_UNSEEN = {"activation": "log1p", "text_side": "contextual"}  # field -> its default


def unseen(config: Mapping[str, Any]) -> bytes:
    """Of the fields of a model's config those that vectors depend on and no weight shows; of defaults nothing."""
    found = {name: config[name] for name, usual in _UNSEEN.items() if config.get(name, usual) != usual}
    return json.dumps(found, sort_keys=True).encode() if found else b""


def text_dropout(rate: float) -> dict[str, float]:
    """One dropout of the text tower, by the names that BERT has for it."""
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


@dataclass
class ModelConfig:
    """What is needed to build the same model again without its weights."""

    vit: str  # timm name of the image tower
    image_size: int  # side of the images in pixels
    text: dict  # the text tower's `BertConfig`
    vit_kwargs: dict = field(default_factory=dict)  # shapes the tower, see `lexlip.models.trust`
    image_norm_eps: float = 1e-12  # of the image tower's LayerNorms
    max_text_len: int = 40  # tokens per caption, [CLS], corner tokens and [SEP] included
    corner_tokens: int = 0  # how many of the last entries of BERT's vocabulary are corners, see `models.long_texts`
    sentence_sep: bool = False  # whether every ". " of a caption is read as [SEP]
    head: str = "lexicon"  # `LexLIP`, or "dense", `DenseLIP`
    embed_dim: int | None = None  # width of the dense head's vectors
    text_pooler: bool = False  # whether the dense head projects BERT's pooler of [CLS] rather than [CLS] itself
    inactive_terms: list[str] = field(default_factory=list)  # kinds of `models.terms` that no lexicon vector has
    activation: str = "log1p"  # how logits become weights, see `ops.max_logits.saturate`
    text_side: str = "contextual"  # what weighs a text's terms, see `LexLIP.lexicon_text`
    own_weights: bool = False  # whether a text's own terms also weigh by a number per term, learned
    joint_dim: int = 0  # width of a dense head beside the lexicon's, on the same towers; 0: none
    image_projection: bool = True  # whether the dense head projects images too; else their tower is embed_dim wide

    @property
    def vocab_size(self) -> int:
        """V, the terms: the tokenizer's vocabulary."""
        return self.text["vocab_size"] - self.corner_tokens

    @property
    def max_words(self) -> int:
        """Tokens per caption that the tokenizer may give: the corners take their positions among `max_text_len`."""
        return self.max_text_len - self.corner_tokens
