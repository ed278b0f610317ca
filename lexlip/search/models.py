"""As little of a model as a query needs: a vocabulary for words, a table for texts, all of it for images."""

from __future__ import annotations

import argparse
from pathlib import Path

from lexlip.index.lookup import TableModel, VocabularyModel, has_table
from lexlip.index.places import Place
from lexlip.index.remembered import remembered
from lexlip.index.store import MANIFEST
from lexlip.pretrained import tell_of

TOKENIZER = "tokenizer.json"


def model_for(
    options: argparse.Namespace, place: Place, what: str, words_only: bool
) -> tuple[str | TableModel | VocabularyModel, bool]:
    """The model that is named, or else the one that made the index.

    Args:
        options: of `lexlip search`.
        place: of the index.
        what: "text", "image" or "bag".
        words_only: words are looked up, and no text is encoded.

    Returns:
        The model, and whether it is the index's own: so it is known without reading its weights, unless the folder's
        vocabulary was written after the index: of another one, words would be other terms.
    """
    name = options.model or remembered(place, options.trust_sources)  # reads the manifest: a quick refusal
    from lexlip.models.source import check_source

    folder = check_source("--model ", name)
    if folder is None or what == "image":
        return name, False
    table = has_table(folder)
    if table:
        tell_of(folder)
    vocabulary = folder / TOKENIZER
    if words_only and options.model is None and vocabulary.is_file() and not _newer(vocabulary, options.index):
        return VocabularyModel(folder), True
    return (TableModel(folder), False) if table else (name, False)


def _newer(vocabulary: Path, index: Path | None) -> bool:
    """Whether a model's vocabulary came to its folder after the state of an index, if that is in a folder too."""
    # The time of the last change, which no copying sets back.
    return index is not None and vocabulary.stat().st_ctime_ns >= (index / MANIFEST).stat().st_ctime_ns
