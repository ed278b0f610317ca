"""The tokenizer that cuts captions into terms, as far as a cache depends on it."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Differs for tokenizers that cut some text differently or number terms differently."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for name in ("truncation", "padding"):  # left behind by whoever used it last
        rules.pop(name, None)
    return hashlib.blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=16).hexdigest()
