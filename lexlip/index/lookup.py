"""Texts to queries with a model's table, without torch: tokenizer, rows of word pieces, a sum.

For models whose text side is a table (`head_text=lookup`): on frozen towers (docs/FROZEN.md) and trained ones. The
vectors are those of the model's `encode_text`; loading takes some tenths of a second less than torch alone, a query
some tens of microseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lexlip.errors import CheckpointError, IndexingError

SIDE = "lexicon_heads.text_side."
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # as `lexlip.models.config`
SPECIALS = 2  # [CLS] and [SEP], which trained towers count among the tokens of a text
LARGEST = 1 << 20  # bytes of a config.json
KEPT_HALF = SIDE + "row_weights"  # all other numbers of 16 bits have 32 in the model
TYPES = {"float16": "float32"}


def has_table(folder: str | Path) -> bool:
    """Whether a folder holds such a model."""
    path = Path(folder) / CONFIG_FILE
    try:
        if path.stat().st_size > LARGEST:
            return False
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and (config.get("text_head") == "table" or config.get("text_side") == "lookup")


def _rows_of_heads(file: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Terms (A,) and rows (V, K) of positions among them and of weights, of heads on frozen towers."""
    terms = file.get_tensor("lexicon_heads.term_ids").astype(np.int64)
    return terms, file.get_tensor(SIDE + "row_terms"), file.get_tensor(SIDE + "row_weights")


def _own_numbers(file: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of a trained text side `lookup`: each word piece is a term and weighs by its own number, softplus."""
    weights = np.logaddexp(0, file.get_tensor("own_weights")) * ~file.get_tensor("text_head.inactive")
    terms = np.arange(len(weights))
    return terms, terms[:, None], weights[:, None]


class Words:
    """A vocabulary by the names that `lexlip.index` calls a tokenizer by."""

    def __init__(self, vocabulary: dict[str, int]):
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def convert_ids_to_tokens(self, term: int) -> str:
        return self._words.get(int(term), "")

    @cached_property
    def _words(self) -> dict[int, str]:
        return {term: word for word, term in self._vocabulary.items()}


def read_vocabulary(path: Path) -> dict[str, int]:
    """The words of a tokenizer.json and their numbers; without building the tokenizer where that can be.

    Raises:
        Exception: of any kind, where the file holds none.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content["model"].get("vocab"), dict):
        return {**content["model"]["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).get_vocab()


class VocabularyModel:
    """A model folder's vocabulary alone, for queries of words: `Index.open(path, model=VocabularyModel(folder))`.

    Raises:
        CheckpointError: the folder holds no tokenizer.json that can be read.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / "tokenizer.json"
        try:
            self.tokenizer = Words(read_vocabulary(path))
        except Exception as error:  # tokenizers raises its own kind
            raise CheckpointError(f"{path} cannot be read: {error}") from error


class TableModel:
    """The text side of a model folder, for `Index.open(path, model=TableModel(folder))`.

    Raises:
        CheckpointError: the folder holds no table, or one that does not fit its vocabulary.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not has_table(folder):
            raise CheckpointError(f"{folder} holds no model whose text side is a table")
        from safetensors import safe_open
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self._config = config = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
            frozen = config.get("text_head") == "table"
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(int(config["max_text_len"]) - (0 if frozen else SPECIALS))
            with safe_open(self.folder / WEIGHTS_FILE, "numpy") as file:
                self.terms, self.row_terms, self.row_weights = (_rows_of_heads if frozen else _own_numbers)(file)
        except Exception as error:  # safetensors and tokenizers raise their own kinds
            raise CheckpointError(f"{folder}: its table or tokenizer cannot be read: {error}") from error
        self.tokenizer = Words(self._tokenizer.get_vocab())
        self._check()

    def _check(self) -> None:
        rows, entries = self.row_terms, self._tokenizer.get_vocab_size()
        whole = rows.dtype.kind == "i" and self.row_weights.dtype.kind == "f"
        if not whole or rows.ndim != 2 or rows.shape != self.row_weights.shape or len(rows) < entries or not rows.size:
            raise CheckpointError(f"{self.folder}: a table of {rows.shape} for {entries:,} word pieces")
        if rows.min() < 0 or rows.max() >= len(self.terms) or not np.isfinite(self.row_weights).all():
            raise CheckpointError(f"{self.folder}: its table names terms that the model lacks, or holds no numbers")
        if self.terms.min() < 0 or self.terms.max() >= len(rows):
            raise CheckpointError(f"{self.folder}: its terms are not in its vocabulary")

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """(B, V) float32 vectors of length 1; of a text without a word of the table, 0.

        Raises:
            IndexingError: something that is no text.
        """
        vectors = np.zeros((len(texts), len(self.row_terms)), np.float32)
        for row, text in enumerate(texts):
            try:
                pieces = np.unique(self._tokenizer.encode(text, add_special_tokens=False).ids)
            except TypeError as error:
                raise IndexingError(f"a query must be a text that UTF-8 can hold, not {text!a}") from error
            if len(pieces):
                where, weights = self.row_terms[pieces].ravel(), self.row_weights[pieces].ravel()
                sums = np.bincount(where, weights.astype(np.float64), minlength=len(self.terms))
                vectors[row, self.terms] = sums / (np.linalg.norm(sums) or 1.0)
        return vectors

    @cached_property
    def fingerprint(self) -> str:
        """What `lexlip.models.fingerprint` gives for the whole model.

        Raises:
            CheckpointError: the weights cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        from lexlip.models.config import unseen

        digest = hashlib.blake2b(digest_size=16)
        try:
            with safe_open(self.folder / WEIGHTS_FILE, "numpy") as file:
                for name in sorted(file.keys()):  # noqa: SIM118  (not a dict)
                    value = file.get_tensor(name)
                    if name != KEPT_HALF:
                        value = value.astype(TYPES.get(str(value.dtype), value.dtype), copy=False)
                    digest.update(f"{name} {tuple(value.shape)} torch.{value.dtype}".encode())
                    digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: its weights cannot be read: {error}") from error
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        digest.update(unseen(self._config))
        return digest.hexdigest()


def table_of(what: str, name: str) -> TableModel | None:
    """The table of a model by its folder or name; None where its text side is none, or is not on this disk.

    Args:
        what, name: of `lexlip.models.source.check_source`.

    Raises:
        CheckpointError: no such model.
    """
    from lexlip.models.source import check_source

    folder = check_source(what, name)
    return TableModel(folder) if folder is not None and has_table(folder) else None
