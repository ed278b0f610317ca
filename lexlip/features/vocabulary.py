"""What a text tower says of each word piece of the lexicon by itself: where term embeddings and lookup rows begin.

V word pieces, P width of the tower's sentence vectors, D width of its input embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from lexlip.errors import FeaturesError
from lexlip.models.towers import TextTower
from lexlip.models.weights import save_tensors

FILE = "vocabulary.safetensors"
BATCH_SIZE = 256


class Vocabulary(NamedTuple):
    """`words` (V, P) float16, 0 for special tokens; `embeddings` (V, D) float16, or None where the tower has others."""

    words: Tensor
    embeddings: Tensor | None


def write_vocabulary(folder: str | Path, tower: TextTower, progress: bool = False) -> None:
    """Encode every word piece of the lexicon, unless the file is there; it appears whole or not at all."""
    path = Path(folder) / FILE
    if path.exists():
        return
    lexicon = tower.lexicon
    pieces, special = lexicon.convert_ids_to_tokens(list(range(len(lexicon)))), set(lexicon.all_special_ids)
    texts = {number: piece.removeprefix("##") for number, piece in enumerate(pieces) if number not in special}
    by_length = sorted(texts, key=lambda number: len(texts[number]))
    words = torch.zeros(len(pieces), tower.pooled_width, dtype=torch.float16)
    with tqdm(total=len(by_length), desc="vocabulary", unit=" words", disable=not progress) as bar:
        for first in range(0, len(by_length), BATCH_SIZE):
            some = by_length[first : first + BATCH_SIZE]
            with torch.inference_mode():
                words[some] = tower.features([texts[number] for number in some]).pooled.to("cpu", torch.float16)
            bar.update(len(some))
    tensors = {"words": words}
    if (embeddings := tower.term_embeddings()) is not None:
        tensors["embeddings"] = embeddings.to("cpu", torch.float16).contiguous()
    save_tensors(tensors, path)


def read_vocabulary(folder: str | Path, size: int) -> Vocabulary:
    """What `write_vocabulary` wrote for a lexicon of so many word pieces.

    Raises:
        FeaturesError: not there, damaged, or of another lexicon.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FeaturesError(f"{path} is not there; run the same `lexlip cache` again, what is finished is kept")
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
            if any(len(shape) != 2 or shape[0] != size for shape in shapes.values()) or "words" not in shapes:
                raise FeaturesError(f"{path} holds {shapes}, not the {size} word pieces of the tokenizer beside it")
            embeddings = file.get_tensor("embeddings") if "embeddings" in shapes else None
            return Vocabulary(file.get_tensor("words"), embeddings)
    except (OSError, SafetensorError) as error:
        raise FeaturesError(f"{path} is damaged ({error}); remove it and run the same `lexlip cache` again") from error
