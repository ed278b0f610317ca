"""Opening what others made: nothing that waits for ever, nothing of any size, nothing outside the allowed folders.

Costs a few system calls per picture: a `stat` of each folder on its way, which the system remembers.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from lexlip_data.errors import BrokenImage, DataError, MissingImage, OutsideImage

MAX_PICTURE_BYTES = 256 << 20

_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def real_roots(*roots: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """Folders that pictures may be read from, their own links resolved: a data root may itself be a link."""
    flat = [item for root in roots for item in ([root] if isinstance(root, (str, Path)) else root)]
    return tuple(dict.fromkeys(os.path.realpath(root) for root in flat))


def check_inside(path: str | Path, roots: Sequence[str]) -> None:
    """Refuse a path that leaves all of `roots`, be it by `..`, by its root or by a link.

    Args:
        path: of a picture.
        roots: from `real_roots`; none: any path may be read.
    Raises:
        OutsideImage: it leads out.
        BrokenImage: it cannot be a path.
    """
    if not roots:
        return
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise _impossible(error) from error
    if not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots):
        raise OutsideImage(f"leads out of {' and '.join(roots)} to {real}; picture_roots would allow its folder")


def read_picture(path: str | Path, roots: Sequence[str] = ()) -> bytes:
    """A picture's file as it is; `roots` as in `check_inside`.

    Raises:
        MissingImage: no such file.
        OutsideImage: the path leads out of the roots.
        BrokenImage: no ordinary file, larger than MAX_PICTURE_BYTES, or the system cannot read it.
    """
    try:
        check_inside(path, roots)
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage(f"is {_kind(status)}, not a file")
            if status.st_size > MAX_PICTURE_BYTES:
                raise BrokenImage(f"{status.st_size:,} bytes; a picture may have {MAX_PICTURE_BYTES:,}")
            return file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImage(error.strerror) from error
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    except BrokenImage:
        raise
    except ValueError as error:
        raise _impossible(error) from error


def _impossible(error: Exception) -> BrokenImage:
    return BrokenImage(f"not a possible path: {error}")  # a NUL, or letters that the file system's encoding lacks


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe waits until somebody writes to it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def is_name(text: str) -> bool:
    """Whether a data set or split may be called so: the name becomes part of a file's name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None


def is_file(path: str | Path) -> bool:
    """Whether an ordinary file is there; never an error, whatever the path."""
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def require_file(path: str | Path) -> None:
    """Refuse what is no ordinary file before a library opens it and waits.

    Raises:
        DataError: nothing is there, or it is a folder, a pipe, a device.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is {_kind(status)}, not a file")


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)
