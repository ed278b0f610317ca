"""What the heads of a frozen-tower model are built from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KIND = "frozen"  # in config.json: tells these folders from those of trained towers
TextHead = Literal["contextual", "lookup", "table"]
TEXT_HEADS = ("contextual", "lookup")  # that can be trained; a trained lookup is written as a table


@dataclass
class FrozenConfig:
    """What is needed to build the same heads again without their weights.

    Attributes:
        image_tower, text_tower: references that `lexlip.models.towers` loads; "" where the tower is not needed.
        image_width: of the image features.
        text_width, pooled_width: of the text tower's token states and of its sentence vector.
        vocab_size: V, entries of the lexicon's tokenizer.
        terms: how many of them may be active; the weights name them.
        width: of the space in which images, texts and terms meet.
        text_head: "contextual" reads the text tower's states; "lookup" adds up rows that each word piece has, made
            from the tower's vector of that piece alone; "table" is such rows written down, which need no text tower.
        row_terms: lookup: terms that a row of the table adds to its own.
        embed_dim: width of the dense reference that comes along; 0: none.
        max_text_len: word pieces of a text that are read.
        tower_facts: what the towers said of themselves when their features were made; compared when they are loaded.
        embedded: the towers whose weights lie in the folder, of "image" and "text".
    """

    image_tower: str
    image_width: int
    vocab_size: int
    terms: int
    text_tower: str = ""
    text_width: int = 0
    pooled_width: int = 0
    width: int = 384
    text_head: TextHead = "contextual"
    row_terms: int = 16
    embed_dim: int = 0
    max_text_len: int = 40
    tower_facts: dict[str, Any] = field(default_factory=dict)
    embedded: list[str] = field(default_factory=list)
    kind: str = KIND
    head: str = "lexicon"

    def as_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return asdict(self)
