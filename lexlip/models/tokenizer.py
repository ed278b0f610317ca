"""The tokenizer whose vocabulary is the lexicon."""

from __future__ import annotations

from lexlip.errors import ConfigError


def load_tokenizer(name: str, vocab_size: int):
    """A BERT tokenizer by hub name or folder.

    Raises:
        ConfigError: it cannot be loaded, or as `check_tokenizer`.
    """
    from transformers import AutoTokenizer  # here, because checking keys alone should not load transformers

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer={name} could not be loaded; give a hub name or a folder with its files ({error})"
        ) from error
    check_tokenizer({"tokenizer": name, "vocab_size": vocab_size}, tokenizer)
    return tokenizer


def check_tokenizer(keys: dict, tokenizer) -> None:
    """Refuse a tokenizer whose words do not fit `vocab_size`.

    Raises:
        ConfigError: no BERT specials, more words than `vocab_size`, or over 128 fewer (padding to a round number is
            fine).
    """
    words = len(tokenizer)
    if not words <= keys["vocab_size"] < words + 128:
        raise ConfigError(
            f"tokenizer={keys['tokenizer']} has {words} words, but vocab_size={keys['vocab_size']}; "
            f"set vocab_size={words}"
        )
    for name in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id"):
        if getattr(tokenizer, name, None) is None:
            raise ConfigError(f"tokenizer={keys['tokenizer']} has no {name[:-3]}; a BERT tokenizer is needed")
