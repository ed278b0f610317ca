"""Readers of JSON annotations, one per layout in which people hold them: each gives one table per split.

The JSON is held whole while it is turned into a table; no picture is opened. `max_images` keeps the first so many
pictures of each split. `rules` say how many bad entries are too many; those that are few are left out, and listed with
the first table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import is_file, is_name, require_file
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.table import CaptionTable

_KARPATHY_NAMES = {"flickr30k": "f30k"}  # the JSON's own name -> ours
_PROBES = 50  # pictures tried before a folder is taken not to be the right one


class _Entries:
    """Collects what is usable of an annotation file, and what is not."""

    def __init__(self, path: Path):
        self.path, self.good, self.bad = path, 0, []

    def text(self, entry: object, key: str | int, where: str) -> str | None:
        """A text of an entry; None, and a bad entry, if there is none."""
        try:
            value = entry[key]
            value.encode()  # JSON can hold half of a letter (a lone surrogate), which no file can
            return value
        except (KeyError, IndexError, TypeError):
            return self.leave_out(f"{where} lacks {key!r}")
        except (AttributeError, UnicodeEncodeError):
            return self.leave_out(f"{where}: {key!r} is no text")

    def leave_out(self, reason: str) -> None:
        self.bad.append(Skipped("", "", "malformed", reason))

    def check(self, rules: Rules, layout: str) -> None:
        example = f"{self.bad[0].reason}; not {layout}" if self.bad else ""
        rules.check_rows(len(self.bad), self.good + len(self.bad), str(self.path), example)


def read_karpathy(
    file: str | Path,
    images: str | Path | None = None,
    name: str | None = None,
    splits: Iterable[str] | None = None,
    max_images: int | None = None,
    rules: Rules = USUAL_RULES,
) -> list[CaptionTable]:
    """Karpathy's JSON: images[].filename, .filepath (optional), .split, .sentences[].raw. restval stays a split.

    Args:
        images: folder that holds `filepath/filename` or `filename`; None: looked for beside the JSON, above it, and in
            their images/ and flickr30k-images/.
        name: data set; None: the JSON's own.
    Raises:
        DataError: the JSON has another shape, or lacks a wanted split.
    """
    path = Path(file)
    content = _load(path)
    entries = _member(content, "images", path)
    own_name = content.get("dataset")
    name = name or (_KARPATHY_NAMES.get(own_name, own_name) if isinstance(own_name, str) else None)
    if not name or not is_name(name):
        raise DataError(f"{path}: the JSON names no data set; give --name")
    rows, found = _karpathy_rows(path, entries)
    found.check(rules, "Karpathy's layout")
    wanted = list(splits) if splits else list(rows)
    if absent := [split for split in wanted if split not in rows]:
        raise DataError(f"{path}: no picture of split {absent[0]!r}; its splits are {', '.join(rows)}")
    if images is not None:
        bases = [Path(images)]
    else:
        homes = [path.parent, path.parent.parent]
        bases = [home / sub for home in homes for sub in ("", "images", f"{name}-images", "flickr30k-images")]
    tables = []
    for number, split in enumerate(wanted):
        captions, filenames, subfolders = zip(*rows[split], strict=True) if rows[split] else ((), (), ())
        pairs = list(zip(subfolders, filenames, strict=True))
        # COCO's folders train2014/ and val2014/ are in the JSON; other sets repeat a folder that people leave out.
        relative = [[str(Path(sub) / file) for sub, file in pairs], list(filenames)]
        base, paths = next(
            ((base, paths) for base in bases for paths in relative if _any_exists(base, paths)), (bases[0], relative[0])
        )
        tables.append(
            CaptionTable(
                name, split, list(captions), paths, _short_ids(paths), folder=base, max_images=max_images,
                origin=str(path), rules=rules, left_out=() if number else found.bad,
            )
        )  # fmt: skip
    return tables


def _karpathy_rows(path: Path, entries: list) -> tuple[dict[str, list[tuple[str, str, str]]], _Entries]:
    """split -> (caption, filename, subfolder) of each caption."""
    found = _Entries(path)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for number, entry in enumerate(entries):
        where = f"images[{number}]"
        filename = found.text(entry, "filename", where)
        split = None if filename is None else found.text(entry, "split", where)
        if filename is None or split is None:
            continue
        if not is_name(split):
            found.leave_out(f"{where}: no split {one_line(split, 80)!r}")
            continue
        subfolder = found.text(entry, "filepath", where) if "filepath" in entry else ""
        sentences = entry.get("sentences")
        if subfolder is None:
            continue
        if not isinstance(sentences, list):
            found.leave_out(f"{where} lacks 'sentences'")
            continue
        for k, sentence in enumerate(sentences):
            caption = found.text(sentence, "raw", f"{where}.sentences[{k}]")
            if caption is not None:
                found.good += 1
                rows.setdefault(split, []).append((caption, filename, subfolder))
    return rows, found


def read_annotations(
    root: str | Path,
    name: str,
    splits: Iterable[str] | None = None,
    max_images: int | None = None,
    rules: Rules = USUAL_RULES,
) -> list[CaptionTable]:
    """ViLT's sources of GCC (train_annot.json, val_annot.json) and SBU (annot.json): lists of [path, caption].

    A path is taken relative to `root`; if no picture is there, by its file name in images_train/*/* or images_val/*/*.
    Raises:
        DataError: no annotation file is there, or it has another shape.
    """
    root = Path(root)
    files = {"train": "annot.json"} if name == "sbu" else {"train": "train_annot.json", "val": "val_annot.json"}
    if absent := [split for split in splits or () if split not in files]:
        raise DataError(f"data set {name} has no split {absent[0]!r}; its splits are {', '.join(files)}")
    wanted = list(splits) if splits else [split for split in files if (root / files[split]).exists()]
    if not wanted:
        raise DataError(f"{root}: none of {', '.join(files.values())} is there; check --root")
    tables = []
    for split in wanted:
        path = root / files[split]
        entries = _load(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: no list at the top of the JSON")
        found = _Entries(path)
        captions, paths = [], []
        for number, entry in enumerate(entries):
            where = f"entry {number}"
            if not isinstance(entry, list) or len(entry) != 2:
                found.leave_out(f"{where} is {one_line(entry, 80)}, not [path, caption]")
                continue
            picture = found.text(entry, 0, where)
            caption = None if picture is None else found.text(entry, 1, where)
            if picture is not None and caption is not None:
                found.good += 1
                paths.append(picture)
                captions.append(caption)
        found.check(rules, "a list of [path, caption]")
        if paths and not _any_exists(root, paths):
            paths = _by_file_name(root / f"images_{split}", root, paths)
        tables.append(
            CaptionTable(
                name, split, captions, paths, _short_ids(paths), folder=root, max_images=max_images, origin=str(path),
                rules=rules, left_out=found.bad,
            )
        )  # fmt: skip
    return tables


def read_coco(
    file: str | Path,
    images: str | Path,
    name: str,
    split: str,
    max_images: int | None = None,
    rules: Rules = USUAL_RULES,
) -> list[CaptionTable]:
    """COCO's own caption JSON: images[].id, .file_name and annotations[].image_id, .caption. image_id is the file name.

    Raises:
        DataError: the JSON has another shape, or annotations name pictures that are not listed.
    """
    path = Path(file)
    content = _load(path)
    found = _Entries(path)
    names: dict[object, str] = {}
    for number, entry in enumerate(_member(content, "images", path)):
        where = f"images[{number}]"
        file_name = found.text(entry, "file_name", where)
        if file_name is None:
            continue
        picture = entry.get("id")
        if not isinstance(picture, (int, str)):
            found.leave_out(f"{where} lacks 'id'")
        elif names.setdefault(picture, file_name) != file_name:
            found.leave_out(f"{where}: the id {one_line(picture, 80)} was {one_line(names[picture], 80)} before")
        else:
            found.good += 1
    captions, paths = [], []
    for number, entry in enumerate(_member(content, "annotations", path)):
        where = f"annotations[{number}]"
        caption = found.text(entry, "caption", where)
        if caption is None:
            continue
        picture = entry.get("image_id")
        if not isinstance(picture, (int, str)) or picture not in names:
            found.leave_out(f"{where} belongs to picture {one_line(picture, 80)}, which images[] does not list")
            continue
        found.good += 1
        captions.append(caption)
        paths.append(names[picture])
    found.check(rules, "COCO's caption layout")
    return [
        CaptionTable(
            name, split, captions, paths, _short_ids(paths), folder=images, max_images=max_images, origin=str(path),
            rules=rules, left_out=found.bad,
        )
    ]  # fmt: skip


def find_coco(root: str | Path, year: str | None = None) -> list[tuple[Path, Path, str]]:
    """COCO's files under `root`: (annotation file, picture folder, split) of annotations/captions_{split}{year}.json.

    Raises:
        DataError: none is there, or two of a split and no year was given.
    """
    root = Path(root)
    found = []
    for path in sorted((root / "annotations").glob("captions_*.json")):
        match = re.fullmatch(r"captions_(train|val|test)(\d*)\.json", path.name)
        if match and year in (None, match.group(2)):
            folder = f"{match.group(1)}{match.group(2)}"
            images = root / folder if (root / folder).is_dir() else root / "images" / folder
            found.append((path, images, match.group(1)))
    if not found:
        raise DataError(
            f"{root}/annotations holds no captions_{{train,val}}{year or '*'}.json; check --root and --year"
        )
    if twice := [split for split, n in Counter(split for _, _, split in found).items() if n > 1]:
        raise DataError(f"{root}/annotations holds several caption files of split {twice[0]}; choose one with --year")
    return found


def _load(path: Path) -> object:
    require_file(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(error)}); it may be a broken copy") from error


def _member(content: object, key: str, path: Path) -> list:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: no list {key!r} at the top of the JSON")
    return content[key]


def _any_exists(base: Path, paths: list[str]) -> bool:
    """Whether one of some pictures, taken evenly from the list, is under `base`."""
    picks = np.unique(np.linspace(0, len(paths) - 1, min(_PROBES, len(paths))).astype(int)) if paths else []
    return any(is_file(base / paths[int(i)]) for i in picks)


def _short_ids(paths: list[str]) -> list[str]:
    """File names, as ViLT has them, unless two pictures share one: then the paths."""
    names = {path: Path(path).name for path in paths}
    return [names[path] for path in paths] if len(set(names.values())) == len(names) else paths


def _by_file_name(folder: Path, root: Path, paths: list[str]) -> list[str]:
    places = {path.name: str(path.relative_to(root)) for path in folder.glob("*/*")}
    return [places.get(Path(path).name, path) for path in paths]
