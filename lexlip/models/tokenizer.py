"""The tokenizer whose vocabulary is the lexicon: each of its entries is a term."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.sizes import read_json
from lexlip.models.source import check_source, load_reason

PADDING = 128  # entries by which towers round their vocabulary up


def load_tokenizer(name: str, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """A BERT tokenizer by hub name or folder; `vocab_size` is what it must fit, None: any.

    Raises:
        ConfigError: it cannot be loaded, or as `check_tokenizer`.
    """
    try:
        check_source("tokenizer=", name, "a folder with its files")
        tokenizer = open_tokenizer(name)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError) as error:
        reason = load_reason(error, name)
        raise ConfigError(
            f"tokenizer={name} could not be loaded; give a hub name or a folder with its files ({reason})"
        ) from error
    check_tokenizer(name, vocab_size or len(tokenizer), tokenizer)
    return tokenizer


def open_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer by hub name or folder, without running code of it and without asking whether to.

    Raises:
        CheckpointError: a folder whose tokenizer cannot be read, or wants to run code.
        OSError, ValueError: the same of a name on the hub.
    """
    if not Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    for file in (Path(name, "tokenizer_config.json"), Path(name, "config.json")):
        settings = read_json(file) if file.is_file() else {}
        if not isinstance(settings, dict):
            raise CheckpointError(f"{file} holds a {type(settings).__name__}, not a tokenizer's settings")
        if "auto_map" in settings:
            raise CheckpointError(
                f"{file} names code to run (auto_map), which is never done; a BERT tokenizer needs none"
            )
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        told = " ".join(str(error).split())
        raise CheckpointError(f"{name}: its tokenizer cannot be loaded: {told or type(error).__name__}") from error


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
