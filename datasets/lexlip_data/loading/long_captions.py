"""Which long texts a training pair gets: an image's long captions, or its captions joined where it has none."""

import numpy as np

from lexlip_data.loading.sentences import split_sentences
from lexlip_data.sources.source import Source


def long_texts(source: Source, i: int, count: int, sub_captions: bool, rng: np.random.Generator) -> list[str]:
    """Long texts of image i, their sentences joined by ". ".

    Args:
        count: how many; different ones as long as the image has so many, then some again.
        sub_captions: of each text take a random number of its sentences, in their order, rather than all: a part of a
            long text describes the image too, and steps rarely see the same part (LoTLIP, DreamLIP).
        rng: makes the choices.
    Raises:
        BrokenSample: a caption is no text.
    """
    pool = [parts for text in source.long_captions(i) if (parts := split_sentences(text))]
    if not pool:
        pool = [[part for caption in source.captions(i) for part in split_sentences(caption)] or source.captions(i)]
    order = rng.permutation(len(pool))
    texts = []
    for number in range(count):
        parts = pool[order[number % len(pool)]]
        if sub_captions:
            kept = np.sort(rng.permutation(len(parts))[: rng.integers(1, len(parts) + 1)])
            parts = [parts[k] for k in kept]
        texts.append(". ".join(parts))
    return texts
