"""LexLIP: images and captions as weighted bags of words over one vocabulary."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexlip.model import LexLIP, ModelConfig

__version__ = "0.1.0"

__all__ = ["LexLIP", "ModelConfig", "__version__"]


def __getattr__(name: str) -> object:
    """The model's names, imported when asked for: towers take seconds to import, and not every command has one."""
    if name in ("LexLIP", "ModelConfig"):
        from lexlip import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
