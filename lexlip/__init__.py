"""LexLIP: images and captions as weighted bags of words over one vocabulary."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexlip.index import Index
    from lexlip.models.config import ModelConfig
    from lexlip.models.dense import DenseLIP
    from lexlip.models.lexlip import LexLIP

__version__ = "0.1.0"

__all__ = ["DenseLIP", "Index", "LexLIP", "ModelConfig", "__version__"]

# Imported when asked for: towers take seconds to import, and not every command has one.
_HOMES = {
    "DenseLIP": "lexlip.models.dense",
    "Index": "lexlip.index",
    "LexLIP": "lexlip.models.lexlip",
    "ModelConfig": "lexlip.models.config",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
