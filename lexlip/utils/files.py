"""Files written so that a reader never sees half of one, whatever happens in between."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lexlip_data.sources.files import sync_folder, writing


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` write a file under a temporary name in the same folder, which is made if need be; then rename it.

    Raises:
        OSError, or what `write` raises: the temporary file is removed, an older file of the name is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    try:
        with writing(path), open(draft, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(value: object, path: str | Path) -> None:
    """`write_whole` of a value as JSON."""
    text = json.dumps(value, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def link_whole(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, replacing an older file; a copy where there are no hard links."""
    draft = target.with_name(target.name + ".tmp")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        with open(source, "rb") as file:
            write_whole(target, lambda copy: shutil.copyfileobj(file, copy))
        return
    draft.replace(target)
    draft.unlink(missing_ok=True)  # renaming onto another name of the same file leaves both
    sync_folder(target.parent)


def give_usual_rights(path: Path) -> None:
    """Let a file be read by whom the user's umask allows; safetensors creates files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
