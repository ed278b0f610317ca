"""Settings by the number of images: what was measured, and what follows from it in between.

Small data needs more dropout, fewer steps and a smaller FLOPS weight, large data larger batches and more steps;
docs/FROZEN.md says which rows were measured.
"""

from __future__ import annotations

from typing import NamedTuple

from lexlip.errors import ConfigError

FEWEST = 100  # images; below, a batch has too few negatives to learn from


class Settings(NamedTuple):
    """`batch_size` different images a step; steps of the dense reference and of the lexicon; dropout of features.

    FLOPS weighs the lexicon alone.
    """

    images: int  # from so many on
    batch_size: int
    dense_steps: int
    lexicon_steps: int
    image_dropout: float
    text_dropout: float
    term_min_count: int
    flops_weight: float


TABLE = (
    Settings(100, 64, 200, 200, 0.6, 0.4, 3, 0.5),
    Settings(500, 256, 300, 300, 0.6, 0.4, 3, 0.5),
    Settings(2_000, 1024, 400, 400, 0.5, 0.3, 5, 1.5),
    Settings(5_000, 1024, 600, 600, 0.5, 0.3, 5, 2.0),
    Settings(20_000, 2048, 1_500, 1_000, 0.4, 0.2, 10, 3.0),
    Settings(100_000, 4096, 3_000, 2_000, 0.3, 0.1, 20, 3.0),
    Settings(1_000_000, 4096, 8_000, 6_000, 0.2, 0.1, 50, 3.0),
)


def settings_for(images: int) -> Settings:
    """The row of the table for so many training images.

    Raises:
        ConfigError: fewer than FEWEST.
    """
    if images < FEWEST:
        raise ConfigError(
            f"{images} training images are too few: at least {FEWEST}, and 1,000 for words that mean much"
        )
    row = next(row for row in reversed(TABLE) if images >= row.images)
    return row._replace(batch_size=min(row.batch_size, images))


def keys_of(settings: Settings, head: str) -> dict:
    """The config keys that they set, for head "dense" or "lexicon"."""
    return {
        "batch_size": settings.batch_size,
        "per_gpu_batchsize": settings.batch_size,
        "max_steps": settings.dense_steps if head == "dense" else settings.lexicon_steps,
        "image_dropout": settings.image_dropout,
        "text_dropout": settings.text_dropout,
        "term_min_count": settings.term_min_count,
        **({} if head == "dense" else {"flops_weight": settings.flops_weight}),
    }
