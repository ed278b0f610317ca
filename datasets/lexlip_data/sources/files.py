"""Opening files that others made: nothing that waits for ever, nothing too large, nothing outside the allowed folders.

Costs a few system calls per image: a `stat` of each folder on its path, which the system caches.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lexlip_data.errors import BrokenImage, DataError, MissingImage, OutsideImage

MAX_IMAGE_BYTES = 256 << 20

_OF_RUST = re.compile(r"\(os error (\d+)\)$")  # safetensors and tokenizers have errors of their own

_SYSTEM = frozenset(
    "@eadir @recycle @recently-snapshot @syno @tmp @sharebin #recycle #snapshot $recycle.bin __macosx lost+found "
    "thumbs.db ehthumbs.db ehthumbs_vista.db desktop.ini".split()
) | {"system volume information", "icon\r"}

is_file = os.path.isfile  # never an error, whatever the path
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe waits until somebody writes to it
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a collection."""
    return name.startswith((".", "@eaDir", "@__thumb")) or name.lower() in _SYSTEM


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Let an error of the system that names no file, as of a full disk while one is written, name this one.

    Raises:
        OSError: also in place of what the libraries in Rust and torch make of one.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def replacing(folder: str | Path, last: str = "") -> Iterator[Path]:
    """A new folder inside `folder`, which is made if need be; the files written there move up when all are.

    So a disk that is full, or a kill, leaves the files of before.

    Args:
        last: name of the file that moves last.

    Raises:
        OSError: naming `folder` where the system's error names no file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as draft:
        try:
            yield Path(draft)
        except OSError as error:  # name the file that is wanted
            if isinstance(error.filename, str) and error.filename.startswith(draft + os.sep):
                error.filename = os.path.join(folder, error.filename[len(draft) + 1 :])
            raise
        for name in sorted(os.listdir(draft), key=lambda name: (name == last, name)):
            os.replace(os.path.join(draft, name), folder / name)


def _system_error(error: Exception) -> int | None:
    """The number of the system's error behind an error of a library, if there is one."""
    if isinstance(error, OSError):
        return error.errno
    if in_rust := _OF_RUST.search(str(error)):
        return int(in_rust[1])
    behind = error.__cause__ or error.__context__  # torch raises a RuntimeError after it
    return behind.errno if isinstance(behind, OSError) and isinstance(error, RuntimeError) else None


def real_roots(*roots: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """Folders that images may be read from, their own links resolved: a data root may itself be a link."""
    flat = [item for root in roots for item in ([root] if isinstance(root, (str, Path)) else root)]
    return tuple(dict.fromkeys(os.path.realpath(root) for root in flat))


def check_inside(path: str | Path, roots: Sequence[str]) -> None:
    """Refuse a path that leaves all of `roots`, whether by `..`, as an absolute path or by a link.

    Args:
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
    if not is_inside(real, roots):
        allowed = " and ".join(roots)
        raise OutsideImage(
            f"leads out of {allowed} to {real}; --picture-roots (the key picture_roots) would allow its folder"
        )


def is_inside(real: str, roots: Sequence[str]) -> bool:
    """Whether a real path is one of some real folders or below one."""
    return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def read_image(path: str | Path, roots: Sequence[str] = (), most: int | None = None) -> bytes:
    """The bytes of an image's file, at most so many, MAX_IMAGE_BYTES if not given; `roots` as in `check_inside`.

    Raises:
        MissingImage: no such file.
        OutsideImage: the path leads out of the roots.
        BrokenImage: not an ordinary file, larger than `most`, or the system cannot read it.
    """
    most = MAX_IMAGE_BYTES if most is None else most
    try:
        check_inside(path, roots)
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage(f"is {_kind(status)}, not a file")
            if status.st_size > most:
                raise BrokenImage(f"{status.st_size:,} bytes; an image may have {most:,}")
            return file.read(status.st_size)
    except BrokenImage:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImage(error.strerror) from error
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    except ValueError as error:
        raise _impossible(error) from error


def _impossible(error: Exception) -> BrokenImage:
    return BrokenImage(f"not a possible path: {error}")  # a NUL, or characters that the file system cannot encode


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: a file's name that was none cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(text: str) -> bool:
    """Whether a data set or split may have this name, which becomes part of a file's name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None


def require_file(path: str | Path) -> None:
    """Refuse what is not an ordinary file, before a library opens it and waits.

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
    with suppress(OSError):  # Windows opens no folders; some network file systems cannot sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
