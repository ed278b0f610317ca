"""An image file that a command was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lexlip.errors import EncodingError
from lexlip_data.errors import BrokenImage, one_line

if TYPE_CHECKING:
    from PIL.Image import Image


def image_of_file(path: Path) -> Image:
    """The decoded image.

    Raises:
        EncodingError: no image that can be read.
    """
    from lexlip_data.sources.images import open_image

    try:
        return open_image(path.read_bytes())
    except (OSError, BrokenImage) as error:
        raise EncodingError(f"{one_line(path)} is no image that can be read: {error}") from error
