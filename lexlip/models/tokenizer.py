"""The tokenizer whose vocabulary is the lexicon: each of its entries is a term."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.source import check_source, load_reason

PADDING = 128  # entries by which towers round their vocabulary up


def load_tokenizer(name: str, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """A BERT tokenizer by hub name or folder; `vocab_size` is what it must fit, None: any.

    Raises:
        ConfigError: it cannot be loaded, or as `check_tokenizer`.
    """
    try:
        check_source("tokenizer=", name, "a folder with its files")
        tokenizer = AutoTokenizer.from_pretrained(name)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError) as error:
        reason = load_reason(error, name)
        raise ConfigError(
            f"tokenizer={name} could not be loaded; give a hub name or a folder with its files ({reason})"
        ) from error
    check_tokenizer(name, vocab_size or len(tokenizer), tokenizer)
    return tokenizer


def check_tokenizer(name: str, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not fit a vocabulary.

    Raises:
        ConfigError: no BERT specials, more word pieces than `vocab_size`, or 128 or more fewer.
    """
    pieces = len(tokenizer)
    if not pieces <= vocab_size < pieces + PADDING:
        raise ConfigError(
            f"tokenizer={name} has {pieces} word pieces, but vocab_size={vocab_size}; set vocab_size={pieces}"
        )
    for special in ("cls_token", "sep_token", "mask_token", "pad_token"):
        if getattr(tokenizer, f"{special}_id", None) is None:
            raise ConfigError(f"tokenizer={name} has no {special}; a BERT tokenizer is needed")
