"""A WordPiece vocabulary of your own captions. Costs seconds per 100,000 captions."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lexlip_data.errors import BrokenSample
from lexlip_data.sources.files import replacing
from lexlip_data.sources.source import Source


def read_captions(sources: Sequence[Source]) -> tuple[list[str], int]:
    """All usable captions of some sources, and how many were left out."""
    captions, left_out = [], sum(len(source.left_out) for source in sources)
    for source in sources:
        for i, count in enumerate(source.caption_counts.tolist()):
            for number in range(count):
                try:
                    captions.append(source.caption(i, number))
                except BrokenSample:
                    left_out += 1
    return captions, left_out


def build_tokenizer(captions: Iterable[str], folder: str | Path, vocab_size: int = 3000) -> int:
    """Train a lower-case WordPiece vocabulary and save a folder that transformers' AutoTokenizer loads.

    The captions are those of the training split alone: words of the others must not leak in. Returns the number of word
    pieces, at most `vocab_size`.
    """
    from tokenizers import BertWordPieceTokenizer

    special = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    captions = sorted(captions)
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    # The trainer numbers characters in the order of a hash map and breaks ties by number, so that no two vocabularies
    # would be equal. Listed as special tokens the characters get fixed numbers; they lose that mark below.
    words = {
        word
        for caption in captions
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption))
    }
    characters = sorted({word[0] for word in words}) + sorted({f"##{char}" for word in words for char in word[1:]})
    tokens = [*special.values(), *characters]
    tokenizer.train_from_iterator(
        captions, vocab_size=vocab_size, min_frequency=1, special_tokens=tokens, show_progress=False
    )
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # Built anew from the vocabulary: the trained object does not yet add [CLS] and [SEP].
    tokenizer = BertWordPieceTokenizer(dict(pieces), lowercase=True)
    names = {f"{name}_token": token for name, token in special.items()}
    # Written by hand: what save_pretrained writes differs between releases of transformers; all of them read this.
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    config.update(names, clean_up_tokenization_spaces=True)
    with replacing(folder) as draft:
        tokenizer.save(str(draft / "tokenizer.json"))
        (draft / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
        for file, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
            (draft / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return len(pieces)
