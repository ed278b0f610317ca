"""Models that come with the package, by name. No imports beyond the standard library: whoever asks for a name waits for
nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEFAULT = "photos-small"  # where no model is named
LICENCES = {
    "photos-small": "photos-small was trained on Flickr8k, whose photos are for research and education only; so is "
    "this model. lexlip fit makes one of your own photos.",
}
TOLD = "told"  # file in the cache folder that remembers which notes were shown


def find(name: str | Path) -> Path | None:
    """The folder of a model that comes with the package; None for other names."""
    folder = Path(__file__).parent / str(name)
    return folder if str(name) in LICENCES and (folder / "config.json").is_file() else None


def tell_licence(name: str) -> None:
    """Show what a model may be used for, once per user where the cache folder can be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lexlip"
    try:
        if name in (folder / TOLD).read_text(encoding="utf-8").split():
            return
    except (OSError, ValueError):
        pass
    print(f"note: {LICENCES[name]}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TOLD).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    except OSError:  # then it is shown again
        pass


def tell_of(folder: Path) -> None:
    """`tell_licence` of a folder of this package; nothing for others."""
    if folder.parent == Path(__file__).parent and folder.name in LICENCES:
        tell_licence(folder.name)
