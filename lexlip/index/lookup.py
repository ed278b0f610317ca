"""Texts to queries with a model's table, without torch: tokenizer, rows of word pieces, a sum.

For models on frozen towers whose text side is a table (`head_text=lookup`, docs/FROZEN.md). The vectors are those of
the model's `encode_text`; loading takes a tenth of a second and a query some tens of microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from lexlip.errors import CheckpointError
from lexlip.index.queries import Bag

SIDE = "lexicon_heads.text_side."
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # as `lexlip.models.config`, which needs torch
LARGEST = 1 << 20  # bytes of a config.json


def has_table(folder: str | Path) -> bool:
    """Whether a folder holds such a model."""
    path = Path(folder) / CONFIG_FILE
    try:
        if path.stat().st_size > LARGEST:
            return False
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("text_head") == "table"


class TableQueries:
    """The text side of a model folder.

    Raises:
        CheckpointError: the folder holds no table, or one that does not fit its vocabulary.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not has_table(folder):
            raise CheckpointError(f"{folder} holds no model whose text side is a table")
        try:
            self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self.length = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))["max_text_len"]
            with safe_open(self.folder / WEIGHTS_FILE, "numpy") as file:
                self.terms = file.get_tensor("lexicon_heads.term_ids").astype(np.int64)
                self.row_terms = file.get_tensor(SIDE + "row_terms")
                self.row_weights = file.get_tensor(SIDE + "row_weights")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: its table cannot be read: {error}") from error
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"{folder}: its tokenizer cannot be read: {error}") from error
        if type(self.length) is not int or not 0 < self.length <= LARGEST:
            raise CheckpointError(f"{folder}: max_text_len={str(self.length)[:60]} is no number of word pieces")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.length)
        rows, weights = self.row_terms, self.row_weights
        entries = self.tokenizer.get_vocab_size()
        if rows.ndim != 2 or rows.shape != weights.shape or len(rows) < entries or not rows.size:
            raise CheckpointError(f"{folder}: a table of {rows.shape} for a vocabulary of {entries:,} word pieces")
        if rows.dtype.kind != "i" or weights.dtype.kind != "f" or self.terms.ndim != 1:
            raise CheckpointError(f"{folder}: its table holds {rows.dtype} and {weights.dtype}, not terms and weights")
        if rows.min() < 0 or rows.max() >= len(self.terms) or not np.isfinite(self.row_weights).all():
            raise CheckpointError(f"{folder}: its table names terms that the model has not, or holds no numbers")

    def bag(self, text: str) -> Bag:
        """A text's terms and weights, of length 1; (0,) where it has no word of the table."""
        try:
            pieces = np.unique(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise CheckpointError(f"a query must be a text that UTF-8 can hold, not {text!a}") from error
        if not len(pieces):
            return np.empty(0, np.uint32), np.empty(0)
        where = self.row_terms[pieces].ravel()
        weights = np.bincount(where, self.row_weights[pieces].ravel().astype(np.float64), minlength=len(self.terms))
        kept = np.flatnonzero(weights > 0)
        length = np.linalg.norm(weights[kept])
        return self.terms[kept].astype(np.uint32), weights[kept] / (length or 1.0)

    def words(self, terms: np.ndarray) -> list[str]:
        """Names of terms."""
        return [self.tokenizer.id_to_token(int(term)) or str(term) for term in terms]
