"""Paths that a command is given, checked before anything heavy is loaded. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

from lexlip.errors import UserError


def check_input(option: str, path: Path | None, folder: bool = False) -> None:
    """Refuse a path where no file is, or no folder; None passes, for an option that was not given.

    Raises:
        UserError: naming option and path.
    """
    if path is None:
        return
    if not path.exists():
        raise UserError(f"{option} {path}: no such {'folder' if folder else 'file'}")
    if path.is_dir() != folder:
        raise UserError(f"{option} {path} " + ("is a file, not a folder" if folder else "is a folder, not a file"))
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise UserError(f"{option} {path} may not be read by this user")


def check_output(option: str, path: Path | None, folder: bool = False) -> None:
    """Refuse a place where a file, or a folder, cannot be written; None passes.

    Raises:
        UserError: as `check_input`.
    """
    if path is None:
        return
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"{option} {path} " + ("is a file, not a folder" if folder else "is a folder, not a file"))
    place = next(
        part for part in ((path, *path.absolute().parents) if folder else path.absolute().parents) if part.exists()
    )
    if not place.is_dir():
        raise UserError(f"{option} {path}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {place} may not be written by this user; name another place")
