"""The ordinary files of a tar archive: names, and where their bytes lie. Nothing is unpacked.

The headers are walked here rather than by `tarfile`, which ends at a damaged one as if the file ended there. What a
header may cost is bounded: sizes are compared with the file, and of extended headers at most 64 KiB are read.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lexlip_data.errors import BrokenImage, DataError, MissingImage, one_line
from lexlip_data.sources.files import MAX_IMAGE_BYTES
from lexlip_data.sources.kinds import HEAD, kind_of
from lexlip_data.sources.skipped import Skipped

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_MOST_HEADER = 1 << 16  # bytes of an extended header: names are of at most some thousand
_MOST_ZEROS = 1 << 20  # bytes between two archives that were joined; tar itself pads with 10 KiB
_PACKED = ("gzip", "bzip2", "xz", "Zstandard", "LZ4", "zip")


class Member(NamedTuple):
    """An ordinary file in an archive: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


class _Damaged(Exception):
    """From which byte on an archive cannot be read, and why."""


def require_tar(path: Path) -> None:
    """Refuse what is surely no plain tar file. Raises DataError."""
    with open(path, "rb") as file:
        head = file.read(max(HEAD, _BLOCK))
    kind = kind_of(head, str(path))
    if kind in _PACKED:
        raise DataError(f"{path}: packed with {kind}, in which no image can be found by its place; unpack it first")
    if not head:
        raise DataError(f"{path}: empty")
    if head[:_BLOCK] != _ZEROS[: len(head)]:
        try:
            tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise DataError(f"{path}: no tar file ({one_line(error)})") from error


def members(path: Path) -> Iterator[Member | Skipped]:
    """The ordinary files of a shard in order, and what else is in it or wrong with it; folders are passed over."""
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        try:
            yield from _walk(file, length, path)
        except _Damaged as error:
            at, reason = error.args
            rest = f"; the {length - at:,} bytes from byte {at:,} on are not read" if at < length else ""
            yield Skipped("", str(path), "malformed", f"{path}: {reason}{rest}: copy it again")


def _walk(file: BinaryIO, length: int, path: Path) -> Iterator[Member | Skipped]:
    at, zeros, extended = 0, 0, dict[str, bytes]()
    while at < length:
        file.seek(at)
        block = file.read(_BLOCK)
        if block == _ZEROS[: len(block)]:
            zeros += len(block)
            at += _BLOCK
            if zeros > _MOST_ZEROS and at < length:
                raise _Damaged(at, f"more than {_MOST_ZEROS:,} zero bytes in a row")
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise _Damaged(at, f"no tar header ({one_line(error)})") from error
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        zeros, size, start = 0, _size(info.size, extended if is_file else {}, at), at + _BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > _MOST_HEADER or start + size > length:
                raise _Damaged(at, f"an extended header of {size:,} bytes")
            extended |= _extended(info.type, file.read(size), at)
        elif is_file:
            name = extended["path"].decode("utf-8", "surrogateescape") if "path" in extended else info.name
            if any(record.startswith("GNU.sparse") for record in extended):
                yield _not_a_file(name, "stored with holes", path)
            else:
                yield Member(name, start, size)
            extended = {}
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            if info.type != tarfile.DIRTYPE:
                yield _not_a_file(info.name, "a link, a device or stored with holes", path)
            size = 0 if info.type in tarfile.SUPPORTED_TYPES and info.type != tarfile.GNUTYPE_SPARSE else size
            extended = {}
        at = start + -(-size // _BLOCK) * _BLOCK
        if start + size > length:
            raise _Damaged(length, f"cut short inside {one_line(ascii(info.name), 200)}")
    if not zeros:
        raise _Damaged(length, "it ends without a tar file's end mark; it may be cut")


def _not_a_file(name: str, what: str, path: Path) -> Skipped:
    return Skipped("", str(path), "malformed", f"{path}: {one_line(ascii(name), 200)} is {what}, not a file")


def _size(size: int, extended: dict[str, bytes], at: int) -> int:
    if "size" in extended:
        digits = extended["size"]
        size = int(digits) if digits.isdigit() and len(digits) < 20 else -1
    if size < 0:
        raise _Damaged(at, "a header with an impossible size")
    return size


def _extended(kind: bytes, data: bytes, at: int) -> dict[str, bytes]:
    """Records of a pax header by name (the values of others than path and size are of no use), or GNU's long name."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0]}
    records, position = dict[str, bytes](), 0
    while position < len(data) and data[position] != 0:
        space = data.find(b" ", position, position + 8)
        digits = data[position:space] if space > 0 else b""
        end = position + (int(digits) if digits.isdigit() else 0)
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _Damaged(at, "an extended header that cannot be read")
        record, _, value = data[space + 1 : end - 1].partition(b"=")
        records[record.decode("utf-8", "replace")] = value
        position = end
    return records


def read_member(locator: str) -> bytes:
    """The bytes at a locator `x.tar#OFFSET+SIZE`.

    Raises:
        BrokenImage: they are more than an image may have, or the shard ends before them.
    """
    path, _, place = locator.rpartition("#")
    offset, size = map(int, place.split("+"))
    if size > MAX_IMAGE_BYTES:
        raise BrokenImage(f"{size:,} bytes; an image may have {MAX_IMAGE_BYTES:,}")
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except FileNotFoundError as error:
        raise MissingImage(error.strerror) from error
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    if len(data) < size:
        raise BrokenImage(f"cut short: the tar file ends {size - len(data):,} bytes before the image does")
    return data
