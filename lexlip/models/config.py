"""What a model is built from."""

from __future__ import annotations

from dataclasses import dataclass, field

HEADS = ("lexicon", "dense")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# The official named configs' towers, under the names that timm gives the same weights.
OFFICIAL_NAMES = {
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit_base_patch16_224.in22k_ft_in22k",
    "google/vit-base-patch32-224-in21k": "vit_base_patch32_224.orig_in21k",
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224.orig_in21k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
}


def text_dropout(rate: float) -> dict[str, float]:
    """One dropout of the text tower, by the names that BERT has for it."""
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


@dataclass
class ModelConfig:
    """What is needed to build the same model again without its weights.

    Attributes:
        vit: timm name of the image tower.
        vit_kwargs: passed to `timm.create_model`; only what shapes a tower (`lexlip.models.trust`).
        image_size: side of the images in pixels.
        image_norm_eps: of the image tower's LayerNorms.
        text: the text tower's `BertConfig` as a dict.
        max_text_len: tokens per caption, [CLS], corner tokens and [SEP] included.
        corner_tokens: how many of the last entries of BERT's vocabulary are corners (`lexlip.models.long_texts`).
        sentence_sep: whether every ". " of a caption is read as [SEP].
        head: "lexicon" (`LexLIP`) or "dense" (`DenseLIP`).
        embed_dim: width of the dense head's vectors.
        text_pooler: whether the dense head projects BERT's pooler of [CLS] (dense, tanh) rather than [CLS] itself.
        image_projection: whether the dense head projects the images too; without, they are as wide as embed_dim.
    """

    vit: str
    image_size: int
    text: dict
    vit_kwargs: dict = field(default_factory=dict)
    image_norm_eps: float = 1e-12
    max_text_len: int = 40
    corner_tokens: int = 0
    sentence_sep: bool = False
    head: str = "lexicon"
    embed_dim: int | None = None
    text_pooler: bool = False
    image_projection: bool = True

    @property
    def vocab_size(self) -> int:
        """V, the terms: the tokenizer's vocabulary."""
        return self.text["vocab_size"] - self.corner_tokens

    @property
    def max_words(self) -> int:
        """Tokens per caption that the tokenizer may give: the corners take their positions among `max_text_len`."""
        return self.max_text_len - self.corner_tokens
