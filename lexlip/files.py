"""Small files, written so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(value: object, path: str | Path) -> None:
    """Write through a temporary name in the same folder, which is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n")
    draft.replace(path)


def give_usual_rights(path: Path) -> None:
    """Readable for whom the user's umask allows; safetensors makes files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
