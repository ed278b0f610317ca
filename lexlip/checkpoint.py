"""The former place of `lexlip.models.weights`; scripts written for it go on working."""

from lexlip.models.weights import load_model, read  # noqa: F401
