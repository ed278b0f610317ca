"""The former place of `lexlip_data.sources.arrow`; scripts written for it go on working."""

from lexlip_data.sources.arrow import ArrowSource  # noqa: F401
