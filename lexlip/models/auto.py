"""The models by their head, for what works with any of them."""

from __future__ import annotations

from pathlib import Path

from lexlip.models.config import ModelConfig
from lexlip.models.dense import DenseLIP
from lexlip.models.hub import local_folder
from lexlip.models.lexlip import LexLIP
from lexlip.models.two_tower import TwoTowers
from lexlip.models.weights import folder_config


def model_class(config: ModelConfig) -> type[TwoTowers]:
    """The class of the models with such a config."""
    return DenseLIP if config.head == DenseLIP.head else LexLIP


def load_folder_of_any_head(name: str | Path, trust_sources: bool = False) -> TwoTowers:
    """A model folder or a name on the hub, whatever its head, in evaluation mode.

    Args:
        trust_sources: as `FolderModel.from_pretrained`.

    Raises:
        CheckpointError: neither a model folder nor to be fetched, or weights that do not fit its config.
    """
    folder = local_folder(name)
    kind = model_class(folder_config(folder, trust_sources))
    return kind.from_pretrained(folder, trust_sources=trust_sources)
