"""Tar shards in webdataset's layout -> a table of captioned images; nothing is unpacked.

`a/0001.jpg` and `a/0001.txt` are one sample with the key `a/0001`: all of a name up to the first dot of its last part.
Opening reads every member's header and the texts, some 30,000 members a second; an image is read where it lies when it
is wanted. Members of a sample may lie anywhere in their shard.

The headers are walked here rather than by `tarfile`, which ends at a damaged one as if the file ended there. What a
header may cost is bounded: sizes are compared with the file, and of extended headers at most 64 KiB are read.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lexlip_data.errors import BrokenImage, DataError, MissingImage, one_line
from lexlip_data.sources.contained import ContainedTable, RowsOfFiles
from lexlip_data.sources.files import MAX_IMAGE_BYTES
from lexlip_data.sources.kinds import HEAD, SUFFIXES, kind_of
from lexlip_data.sources.patterns import find_files
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_MOST_HEADER = 1 << 16  # bytes of an extended header: names are of at most some thousand
_MOST_ZEROS = 1 << 20  # bytes between two archives that were joined; tar itself pads with 10 KiB
_MOST_TEXT = 1 << 20  # bytes of a caption's or a JSON member
_PACKED = ("gzip", "bzip2", "xz", "Zstandard", "LZ4", "zip")
_FIELDS = ("caption", "text")  # of a JSON member, where none is named
_KEY = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)  # webdataset's


class Member(NamedTuple):
    """An ordinary file in a shard: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


class _Damaged(Exception):
    """Why the rest of a shard cannot be read."""


class _Unusable(Exception):
    """Why a sample is left out: its kind, and the reason."""


def read_tars(
    patterns: str | Path | Sequence[str | Path], name: str, split: str, rules: Rules = USUAL_RULES,
    caption_key: str | None = None, image_key: str | None = None, caption_lines: bool = False,
    shard_in_id: bool = False,
) -> ContainedTable:  # fmt: skip
    """The captioned images of tar shards; the id is the sample's key.

    Args:
        patterns: as for `find_files`.
        caption_key: the ending of the member that holds the caption, or else the field of the `json` member; None:
            `txt`, or else `caption` or `text` in `json`. A field may be a list of captions.
        image_key: the ending of the image's member; None: the first that is an image's.
        caption_lines: each line of a text is a caption, rather than the whole.
        shard_in_id: ids are SHARD/KEY, for keys that are unique in their shard only.
    Raises:
        DataError: a shard is missing or no tar file, or too much in them is bad.
    """
    files = find_files(patterns)
    collected = RowsOfFiles(files)
    for file in files:
        require_tar(file)
        label = collected.name(file)
        prefix = f"{label.removesuffix('.tar')}/" if shard_in_id else ""
        samples = _samples(file, collected)
        collected.seen += len(samples)
        rows = []
        with open(file, "rb") as content:
            for key, parts in samples.items():
                try:
                    image = _image(parts, image_key)
                    locator = f"{label}#{image.offset}+{image.size}"
                    captions = _captions(parts, content, caption_key, caption_lines)
                    rows += [(caption, locator, prefix + key) for caption in captions]
                except _Unusable as error:
                    kind, reason = error.args
                    collected.leave_out(key, file, kind, f"sample {one_line(key, 200)!r}: {reason}")
        collected.add(rows)
    try:
        return ContainedTable(name, split, collected.rows(rules), files, rules, read_member)
    except DataError as error:
        if "stands for two files" in str(error):
            raise DataError(f"{error}; where keys are unique in their shard only, --shard-in-id") from error
        raise


def _samples(file: Path, collected: RowsOfFiles) -> dict[str, dict[str, Member]]:
    """Members of each sample of a shard by their ending, by key."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members(file):
        if isinstance(member, Skipped):
            collected.left_out.append(member)
            continue
        match = _KEY.fullmatch(member.name)
        if match is None:
            continue  # no sample's: a dot file, or what has no ending
        key, ending = match[1], match[2].lower()
        parts = samples.setdefault(key, {})
        if not _is_utf8(member.name):
            collected.leave_out(ascii(key), file, "malformed", f"{one_line(ascii(member.name), 200)} is not UTF-8")
        elif ending in parts:
            reason = f"the key {one_line(key, 200)!r} has a second .{one_line(ending, 40)}, and the first is used"
            collected.leave_out(key, file, "repeated", reason)
        else:
            parts[ending] = member
    return {key: parts for key, parts in samples.items() if parts}


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
            rest = f"the {length - at:,} bytes from byte {at:,} on are not read" if at < length else "it may be cut"
            yield Skipped("", str(path), "malformed", f"{path}: {reason}; {rest}: copy it again")


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
        raise _Damaged(length, "it ends without a tar file's end mark")


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


def _image(parts: dict[str, Member], image_key: str | None) -> Member:
    if image_key is not None:
        endings = [image_key.lower().lstrip(".")]
    else:  # 0001.jpg before 0001.mask.png
        endings = sorted((ending for ending in parts if f".{ending.split('.')[-1]}" in SUFFIXES), key=len)
    found = next((parts[ending] for ending in endings if ending in parts), None)
    if found is None:
        raise _Unusable("empty", f"no image among its members .{one_line(', .'.join(parts), 100)}")
    return found


def _captions(parts: dict[str, Member], file: BinaryIO, key: str | None, lines: bool) -> list[str]:
    ending = "txt" if key is None else key.lower().lstrip(".")
    if ending in parts and ending != "json":
        text = _text(parts[ending], file)
        captions = text.splitlines() if lines else [text.strip("\r\n")]
        return [caption for caption in captions if caption.strip()] or _none("an empty caption")
    if "json" not in parts:
        return _none(f"no member .{ending} or .json with a caption")
    try:
        content = json.loads(_text(parts["json"], file))
    except (ValueError, RecursionError) as error:
        raise _Unusable("malformed", f".json is not JSON ({one_line(error, 100)})") from None
    fields = _FIELDS if key is None else (key,)
    found = next((content[field] for field in fields if isinstance(content, dict) and content.get(field)), None)
    texts = found if isinstance(found, list) else [found]
    if found is None or not texts:
        return _none(f".json holds no {' or '.join(map(repr, fields))}")
    if any(not isinstance(text, str) or not _is_utf8(text) for text in texts):
        raise _Unusable("malformed", f".json holds no text as {fields[0]!r}")
    return [text for text in texts if isinstance(text, str) and text.strip()] or _none("an empty caption")


def _none(reason: str) -> list[str]:
    raise _Unusable("empty", reason)


def _text(member: Member, file: BinaryIO) -> str:
    if member.size > _MOST_TEXT:
        raise _Unusable("long", f"{one_line(ascii(member.name), 100)} has {member.size:,} bytes")
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise _Unusable("malformed", "its caption is cut short")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unusable("malformed", f"{one_line(ascii(member.name), 100)} is not UTF-8 ({error.reason})") from None
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
