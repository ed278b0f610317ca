"""The photos of a result: thumbnails, a contact sheet, and the program that shows them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lexlip.errors import IndexingError, UserError
from lexlip.index import Hit
from lexlip.index.places import Searchable
from lexlip.sync.photos import PhotoRoots, read_photo
from lexlip.utils.files import write_whole
from lexlip_data.errors import BrokenSample, one_line
from lexlip_data.sources.images import open_image

SIDE = 240  # pixels of a thumbnail at most
_COLUMNS = 5
_MARGIN, _LINE = 12, 16
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def thumbnail(roots: PhotoRoots, id: object) -> Image.Image | None:
    """A photo in at most SIDE x SIDE pixels; None where there is none, or none that can be read."""
    path = roots.path(id)
    if path is None:
        return None
    try:
        image = open_image(read_photo(path, str(id)), SIDE)
    except BrokenSample:
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def contact_sheet(index: Searchable, hits: Sequence[Hit], path: Path) -> None:
    """Write the hits as one image, best first: five in a row, each with its score and name.

    Raises:
        UserError: a suffix of another format.
        IndexingError: none of the photos can be found.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"--contact-sheet {path}: {', '.join(_FORMATS)} can be written")
    roots = PhotoRoots(index.manifest.sources)
    shown = [thumbnail(roots, hit.id) for hit in hits]
    if hits and not any(shown):
        raise IndexingError(
            f"--contact-sheet: {index.folder} does not know where its photos are, or they are gone; lexlip sync "
            "makes an index that does"
        )
    columns = max(1, min(_COLUMNS, len(hits)))
    wide, high = SIDE + _MARGIN, SIDE + 2 * _LINE + _MARGIN
    sheet = Image.new("RGB", (columns * wide + _MARGIN, -(-len(hits) // columns) * high + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (hit, image) in enumerate(zip(hits, shown)):
        left, top = _MARGIN + number % columns * wide, _MARGIN + number // columns * high
        if image is None:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="grey")
        else:
            sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        name = one_line(str(hit.id), 36).encode("latin-1", "replace").decode("latin-1")  # what the font has
        for line, text in enumerate((f"{number + 1}.  {hit.score:.3f}", name)):
            draw.text((left, top + SIDE + 2 + line * _LINE), text, fill="black", font=font)
    write_whole(path, lambda file: sheet.save(file, kind))


def open_in_program(index: Searchable, hits: Sequence[Hit], sheet: Path | None) -> None:
    """Show the contact sheet, or else the best photo, in the program that the system has for it.

    Raises:
        IndexingError: no hit, or its file is not to be found.
        UserError: no such program.
    """
    path = sheet
    if path is None:
        if not hits:
            return
        path = PhotoRoots(index.manifest.sources).path(hits[0].id)
        if path is None:
            raise IndexingError(f"--open: {index.folder} does not know where {hits[0].id} is, or it is gone")
    if sys.platform == "win32":
        import os

        os.startfile(path)
        return
    program = "open" if sys.platform == "darwin" else "xdg-open"
    try:
        subprocess.Popen([program, str(path.absolute())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(f"--open: {program} cannot be started ({error.strerror})") from error
