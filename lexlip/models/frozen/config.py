"""What the heads of a frozen-tower model are built from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lexlip.errors import CheckpointError

FROZEN = "frozen"  # in config.json: tells these folders from those of trained towers
SIDES = ("image", "text")
MOST = 1 << 22  # of any of the numbers
TextHead = Literal["contextual", "lookup", "table"]  # the first two can be trained; a trained lookup becomes a table


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
        separate_tables: whether images have term embeddings of their own, or those of texts.
        activation: how logits become weights, see `lexlip.ops.max_logits.saturate`.
        row_terms: lookup: terms that a row of the table adds to its own.
        embed_dim: width of the dense reference that comes along; 0: none.
        max_text_len: word pieces of a text that are read.
        tower_facts: what the towers said of themselves when their features were made; compared when they are loaded.
            "stored" is the hash of an embedded tower's weights, which may have fewer bits.
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
    row_terms: int = 24
    separate_tables: bool = False
    activation: Literal["log1p", "log1p_twice"] = "log1p"
    embed_dim: int = 0
    max_text_len: int = 40
    tower_facts: dict[str, Any] = field(default_factory=dict)
    embedded: list[str] = field(default_factory=list)
    kind: str = FROZEN
    head: Literal["lexicon", "dense"] = "lexicon"

    @classmethod
    def checked(cls, values: dict[str, Any], where: str | Path) -> FrozenConfig:
        """The config that a file holds.

        Raises:
            CheckpointError: naming the file and what is no config of this kind.
        """
        hints, known = get_type_hints(cls), {field.name for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise CheckpointError(f"{where} says {str(name)[:60]!r}, which no model on frozen towers has")
            kind = get_origin(hints[name]) or hints[name]
            if kind is int and not (type(value) is int and 0 <= value <= MOST):
                raise CheckpointError(f"{where}: {name}={str(value)[:60]}; a whole number from 0 to {MOST:,}")
            if kind in (bool, str, dict, list) and not isinstance(value, kind):
                raise CheckpointError(f"{where}: {name}={str(value)[:60]}; a {kind.__name__} is needed")
            if kind is Literal and value not in get_args(hints[name]):
                raise CheckpointError(f"{where}: {name}={str(value)[:60]}; one of {', '.join(get_args(hints[name]))}")
        try:
            config = cls(**values)
        except TypeError as error:
            raise CheckpointError(f"{where} is no config of a model on frozen towers: {error}") from error
        if wrong := config._contradiction():
            raise CheckpointError(f"{where}: {wrong}")
        return config

    def _contradiction(self) -> str | None:
        """What is wrong among fields that are right by themselves."""
        facts = [self.tower_facts.get(side, {}) for side in SIDES]
        told = all(isinstance(fact, dict) and isinstance(fact.get("preprocessing", {}), dict) for fact in facts)
        if not told or not all(side in SIDES for side in self.embedded):
            return f"tower_facts and embedded tell of the towers {' and '.join(SIDES)}"
        needed = ["image_width", "width", "max_text_len"]
        needed += ["embed_dim"] if self.head == "dense" else []
        needed += ["pooled_width"] if self.text_head != "table" or self.embed_dim else []
        needed += ["text_width"] if self.head == "lexicon" and self.text_head == "contextual" else []
        for name in needed:
            if not getattr(self, name):
                return f"{name}=0; head={self.head} with text_head={self.text_head} needs 1 or more"
        if not 0 < self.terms <= self.vocab_size:
            return f"terms={self.terms}; from 1 to vocab_size={self.vocab_size}"
        return None

    def as_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return asdict(self)
