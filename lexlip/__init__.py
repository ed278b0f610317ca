"""LexLIP: images and captions as weighted bags of words over one vocabulary."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexlip.index import Index
    from lexlip.models.dense import DenseLIP
    from lexlip.models.lexlip import LexLIP, ModelConfig

__version__ = "0.1.0"

__all__ = ["DenseLIP", "Index", "LexLIP", "ModelConfig", "__version__"]


def __getattr__(name: str) -> object:
    """Names imported when asked for: towers take seconds to import, and not every command has one."""
    if name == "Index":
        from lexlip.index import Index

        return Index
    if name == "DenseLIP":
        from lexlip.models.dense import DenseLIP

        return DenseLIP
    if name in ("LexLIP", "ModelConfig"):
        from lexlip.models import lexlip

        return getattr(lexlip, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
