"""A reference says where a tower comes from and what of it is taken: `KIND:NAME[@FILE][#VIEW]`.

KIND is timm, open_clip, hf (Hugging Face) or st (sentence-transformers); without one it is guessed. Several image
towers side by side are joined by " + ".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lexlip.errors import ConfigError
from lexlip.models.trust import TRUST

KINDS = ("timm", "open_clip", "hf", "st")
VIEWS = ("pooled", "cls", "mean", "cls+mean", "patches")
LOCAL, HUB = "local-dir:", "hf-hub:"  # what timm and open_clip call a folder, and a name on the hub


@dataclass(frozen=True)
class Reference:
    """One tower.

    Attributes:
        kind: of KINDS.
        name: of the architecture, a name on the hub, or a folder; for open_clip with the tag of its weights,
            "MODEL/TAG".
        file: of weights; None: the library's own, or those of the folder.
        view: of VIEWS; None: the tower's default.
        base: folder that relative paths begin from.
    """

    kind: str
    name: str
    file: str | None = None
    view: str | None = None
    base: Path = Path()

    def __str__(self) -> str:
        file = f"@{self.file}" if self.file else ""
        return f"{self.kind}:{self.name}{file}" + (f"#{self.view}" if self.view else "")

    @property
    def folder(self) -> Path | None:
        """The folder that holds the tower, if it is one."""
        path = self.base / self.name.removeprefix(LOCAL)
        return path if path.is_dir() else None

    @property
    def weights(self) -> Path | None:
        """The file of weights, if one is named."""
        return self.base / self.file if self.file else None


def split_references(reference: str | Sequence[str]) -> list[str]:
    """The towers that stand side by side in a reference, or a list of them."""
    return [part.strip() for part in reference.split(" + ")] if isinstance(reference, str) else list(reference)


def parse(text: str, base: str | Path | None = None) -> Reference:
    """One tower's reference.

    Args:
        base: folder that relative paths begin from; None: they begin from here and become absolute.

    Raises:
        ConfigError: empty, of an unknown kind or view, or naming a file that does not exist.
    """
    kind, name, file, view = _cut(text.strip())
    found = Reference(kind, name, file, view, Path(base) if base is not None else Path())
    if not name:
        raise ConfigError(f"tower {text!r} names nothing; give KIND:NAME, with KIND one of {', '.join(KINDS)}")
    if found.weights and not found.weights.is_file():
        raise ConfigError(f"tower {text}: no weights file {found.weights}")
    if not kind:
        found = replace(found, kind=_guess(found, text))
    if found.file and found.kind not in ("timm", "open_clip"):
        raise ConfigError(f"tower {text}: a file of weights goes with timm: and open_clip: only; name the folder alone")
    if base is None:
        found = _absolute(found)
    return found


def _cut(text: str) -> tuple[str, str, str | None, str | None]:
    rest, mark, view = text.rpartition("#")
    if mark and view not in VIEWS:
        if not Path(text).exists():
            raise ConfigError(f"tower {text}: {view!r} is no view of a tower; choose one of {', '.join(VIEWS)}")
        rest, mark = text, ""  # a path with a # in it
    rest, view_or_none = (rest, view) if mark else (text, None)
    kind, colon, name = rest.partition(":")
    if not colon or kind not in KINDS:
        if colon and kind + ":" not in (LOCAL, HUB) and not Path(rest).exists():
            raise ConfigError(f"tower {text}: unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
        kind, name = "", rest
    file = None
    if not Path(name).exists():
        name, _, after = name.partition("@")
        file = after or None
    return kind, name, file, view_or_none


def _guess(found: Reference, text: str) -> str:
    if found.name.startswith((LOCAL, HUB)):
        return "timm"
    folder = found.folder
    if folder is None:
        if (found.base / found.name).is_file():
            raise ConfigError(f"tower {text} is a file of weights; say of what: timm:NAME@{text} or open_clip:NAME@...")
        import timm  # here: it takes seconds, and most references name their kind

        if timm.is_model(found.name.split(".")[0]):
            return "timm"
        if found.file:
            raise ConfigError(f"tower {text}: timm knows no {found.name}; for open_clip write open_clip:{text}")
        return "hf"
    if (folder / "modules.json").is_file():
        return "st"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"tower {text}: {folder} holds no readable config.json or modules.json ({error})") from error
    return "timm" if "architecture" in config and "model_type" not in config else "hf"


def _absolute(found: Reference) -> Reference:
    if found.folder is not None:
        prefix = LOCAL if found.name.startswith(LOCAL) else ""
        found = replace(found, name=prefix + str(found.folder.resolve()))
    return replace(found, file=str(found.weights.resolve())) if found.weights else found


def check_reference(reference: str | Sequence[str], folder: str | Path | None = None) -> None:
    """Refuse a reference that leads out of the folder in which it was found: to the hub, or to another path.

    Args:
        folder: that holds the reference and may hold its towers; None: nothing is inside.

    Raises:
        ConfigError: naming the reference and where it leads.
    """
    for part in split_references(reference):
        found = parse(part, folder)
        place = found.weights or found.folder
        if place is None:
            raise ConfigError(f"tower {part} would be fetched by its name; if you trust who wrote the name, {TRUST}")
        if folder is None or not place.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(
                f"tower {part} leads to {place}, outside {folder or 'any folder that was given'}; "
                f"if you trust who wrote the path, {TRUST}"
            )
