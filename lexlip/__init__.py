"""LexLIP: images and captions as weighted bags of words over one vocabulary."""

__version__ = "0.1.0"

from lexlip.model import LexLIP, ModelConfig

__all__ = ["LexLIP", "ModelConfig", "__version__"]
