"""The former place of `lexlip_data.sources.images`; scripts written for it go on working."""

from lexlip_data.sources.images import open_image  # noqa: F401
