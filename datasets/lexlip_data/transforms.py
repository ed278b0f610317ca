"""The former place of `lexlip_data.loading.transforms`; scripts written for it go on working."""

from lexlip_data.loading.transforms import build_transform  # noqa: F401
