"""Tar shards in webdataset's layout -> a table of captioned images.

`a/0001.jpg` and `a/0001.txt` are one sample with the key `a/0001`: all of a name up to the first dot of its last part.
Opening reads every member's header and the texts, some 30,000 members a second; an image is read where it lies when it
is wanted. Members of a sample may lie anywhere in their shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.contained import ContainedTable, RowsOfFiles
from lexlip_data.sources.files import is_utf8
from lexlip_data.sources.kinds import SUFFIXES
from lexlip_data.sources.patterns import find_files
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.tar_members import Member, members, read_member, require_tar

_MOST_TEXT = 1 << 20  # bytes of a caption's or a JSON member
_FIELDS = ("caption", "text")  # of a JSON member, where none is named
_KEY = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)  # webdataset's


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
        if not is_utf8(member.name):
            collected.leave_out(ascii(key), file, "malformed", f"{one_line(ascii(member.name), 200)} is not UTF-8")
        elif ending in parts:
            reason = f"the key {one_line(key, 200)!r} has a second .{one_line(ending, 40)}, and the first is used"
            collected.leave_out(key, file, "repeated", reason)
        else:
            parts[ending] = member
    return {key: parts for key, parts in samples.items() if parts}


def _image(parts: dict[str, Member], image_key: str | None) -> Member:
    if image_key is not None:
        endings = [image_key.lower().lstrip(".")]
    else:  # 0001.jpg before 0001.mask.png
        endings = sorted((ending for ending in parts if f".{ending.split('.')[-1]}" in SUFFIXES), key=len)
    found = next((parts[ending] for ending in endings if ending in parts), None)
    if found is None:
        wanted = f" .{endings[0]}" if image_key is not None else ""
        raise _Unusable("empty", f"no image{wanted} among its members .{one_line(', .'.join(parts), 100)}")
    return found


def _captions(parts: dict[str, Member], file: BinaryIO, key: str | None, lines: bool) -> list[str]:
    ending = "txt" if key is None else key.lower().lstrip(".")
    if ending in parts and ending != "json":
        text = _text(parts[ending], file)
        captions = text.splitlines() if lines else [text.strip("\r\n")]
        return [caption for caption in captions if caption.strip()] or _none("an empty caption")
    if "json" not in parts:
        return _none(f"no member .{ending} or .json with a caption among .{one_line(', .'.join(parts), 100)}")
    try:
        content = json.loads(_text(parts["json"], file))
    except (ValueError, RecursionError) as error:
        raise _Unusable("malformed", f".json is not JSON ({one_line(error, 100)})") from None
    fields = _FIELDS if key is None else (key,)
    found = next((content[field] for field in fields if isinstance(content, dict) and content.get(field)), None)
    texts = found if isinstance(found, list) else [found]
    if found is None or not texts:
        there = f" but {one_line(', '.join(content), 100)}" if isinstance(content, dict) and content else ""
        return _none(f".json holds no {' or '.join(map(repr, fields))}{there}; --caption-key names another")
    if any(not isinstance(text, str) or not is_utf8(text) for text in texts):
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
