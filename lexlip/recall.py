"""The former place of `lexlip.evaluate.recall`; scripts written for it go on working."""

from lexlip.evaluate.recall import SparseVectors, evaluate  # noqa: F401
