"""The former place of `lexlip_data.sources.registry`; scripts written for it go on working."""

from lexlip_data.sources.registry import open_split  # noqa: F401
