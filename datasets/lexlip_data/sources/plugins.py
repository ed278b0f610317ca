"""Pillow's plugins, its own and those of other packages, registered once: which formats can be opened here.

HEIC and HEIF where pillow-heif is installed (the extra `photos`), JPEG XL where pillow-jxl-plugin is; AVIF is Pillow's
own since 11.3. A plugin that is there and does not work counts as not installed.
"""

from __future__ import annotations

from contextlib import suppress

from PIL import Image

# Kinds (`kinds.kind_of`) -> what reads them where Pillow alone does not.
PACKAGES = {"HEIC/HEIF": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "AVIF": "a Pillow of 11.3 or later"}

Image.init()
with suppress(Exception):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False)
with suppress(Exception):
    import pillow_jxl  # noqa: F401  (registers itself)


def can_open(plugin: str) -> bool:
    """Whether Pillow has an opener of this name."""
    return plugin in Image.OPEN


def package_for(kinds: list[str]) -> str:
    """What would read some kinds of images that are not read, in words; empty where nothing would."""
    return "; ".join(f"{kind} is read where {PACKAGES[kind]} is installed" for kind in PACKAGES if kind in kinds)
