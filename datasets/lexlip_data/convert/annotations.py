"""Readers of JSON annotations, one per layout in which people hold them: each gives one table per split.

The JSON is held whole while it is turned into a table; no image is opened. `rules` say how many bad entries are too
many; those that are few are left out, and listed with the first table.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import is_file, is_name
from lexlip_data.sources.kinds import require_text
from lexlip_data.sources.listing import Listing
from lexlip_data.sources.paths import normal_paths
from lexlip_data.sources.rows import COCO_IDS, Rows
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.table import CaptionTable

log = logging.getLogger(__name__)

_KARPATHY_NAMES = {"flickr30k": "f30k"}  # the JSON's own name -> ours
_PROBES = 50  # images looked for before a folder is taken to be the wrong one


class _Unusable(Exception):
    """Why an entry is left out."""


def read_karpathy(
    file: str | Path, images: str | Path | None = None, name: str | None = None, splits: Iterable[str] | None = None,
    rules: Rules = USUAL_RULES,
) -> list[CaptionTable]:  # fmt: skip
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
    if not entries:
        raise DataError(f"{path}: the list 'images' is empty, so there is nothing to convert")
    rows: dict[str, list[tuple[str, ...]]] = {}  # split -> (caption, file name, its path, COCO's numbers) of each
    bad: list[Skipped] = []
    bare: list[Skipped] = []

    def read_image(entry: Any, where: str) -> None:
        file_name, split = _text(entry, where, "filename"), _text(entry, where, "split")
        if not is_name(split):
            raise _Unusable(f"{where}: no split {one_line(split, 80)!r}")
        folder = _text(entry, where, "filepath") if "filepath" in entry else ""
        if not isinstance(entry.get("sentences"), list):
            raise _Unusable(f"{where} lacks 'sentences'")
        if not entry["sentences"]:
            bare.append(Skipped(file_name, file_name, "empty", f"{where} has no sentence"))
        path, cocoid = str(Path(folder, file_name)), _id(entry.get("cocoid")) or ""
        read = lambda sentence, where: (_text(sentence, where, "raw"), _id(sentence.get("sentid")) or "")
        for caption, caption_id in _usable(entry["sentences"], where + ".sentences[{}]", read, bad):
            rows.setdefault(split, []).append((caption, file_name, path, caption_id, cocoid))

    _usable(entries, "images[{}]", read_image, bad)
    rules.check_left_out(bad, sum(map(len, rows.values())), path, "; not Karpathy's layout")
    if not rows:
        raise DataError(f"{path}: none of its {len(entries):,} images has a sentence, so there is nothing to convert")
    bad += bare
    wanted = list(splits) if splits else list(rows)
    if absent := [split for split in wanted if split not in rows]:
        raise DataError(f"{path}: no image of split {absent[0]!r}; its splits are {', '.join(rows)}")
    if images is not None:
        bases = [Path(images)]
    else:
        homes = [path.parent, path.parent.parent]
        bases = [home / sub for home in homes for sub in ("", "images", f"{name}-images", "flickr30k-images")]
    tables: list[CaptionTable] = []
    for split in wanted:
        captions, names, paths, *coco_ids = (list(column) for column in zip(*rows[split], strict=True))
        # COCO's folders train2014/ and val2014/ are in the JSON; other sets repeat a folder that people leave out.
        candidates = [(base, relative) for base in bases for relative in (paths, names)]
        base, paths = next((candidate for candidate in candidates if _any_exists(*candidate)), candidates[0])
        tables.append(_table(name, split, captions, paths, bad if not tables else [], path, base, rules, coco_ids))
    return tables


def read_annotations(
    root: str | Path, name: str, splits: Iterable[str] | None = None, rules: Rules = USUAL_RULES
) -> list[CaptionTable]:
    """ViLT's sources of GCC (train_annot.json, val_annot.json) and SBU (annot.json): lists of [path, caption].

    A path is taken relative to `root`; if no image is there, the file in images_train/ or images_val/ whose path ends
    like it, and the longest so.
    Raises:
        DataError: no annotation file is there, it has another shape, or a path may mean two files.
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
        bad: list[Skipped] = []
        pairs = _usable(entries, "entry {}", _path_and_caption, bad)
        rules.check_left_out(bad, len(pairs), path, "; not a list of [path, caption]")
        paths, captions = [path for path, _ in pairs], [caption for _, caption in pairs]
        if paths and not _any_exists(root, paths):
            paths = _moved(paths, root, f"images_{split}", path)
        tables.append(_table(name, split, captions, paths, bad, path, root, rules))
    return tables


def _moved(paths: list[str], root: Path, folder: str, origin: Path) -> list[str]:
    """Where images are that were listed on another machine: for each path the file under `folder` whose end it shares.

    A file belongs to the path that shares most with it; a path that loses it keeps its name, and is missing.
    Raises:
        DataError: two files, or two paths, are equally near.
    """
    listing = Listing(root / folder)
    files: dict[str, list[str]] = {}
    for file in listing:
        files.setdefault(_form(file.rpartition("/")[2]), []).append(f"{folder}/{file}")
    for note in listing.notes() if files else ():
        log.warning("%s", note)
    nearest: dict[str, tuple[str, int]] = {}  # path -> its file, and how many parts of their ends are equal
    owners: dict[str, tuple[str, int]] = {}
    advice = "give paths whose ends tell them apart"
    for path in dict.fromkeys(paths):
        parts = _parts(path)
        candidates = [(_common_end(parts, _parts(file)), file) for file in files.get(parts[-1], ())] if parts else []
        if not candidates:
            continue
        most, file = max(candidates)
        equal = [one_line(other, 200) for length, other in sorted(candidates) if length == most]
        if len(equal) > 1:
            raise DataError(f"{origin}: {one_line(path, 200)!r} may be {equal[0]} or {equal[1]}; {advice}")
        owner, length = owners.get(file, (path, 0))
        if length == most and _parts(owner) != parts:
            both = " and ".join(repr(one_line(name, 200)) for name in (owner, path))
            raise DataError(f"{origin}: {both} may be {equal[0]}; {advice}")
        nearest[path] = file, most
        if most > length:
            owners[file] = path, most
    moved = {path: file for path, (file, length) in nearest.items() if owners[file][1] == length}
    return [moved.get(path, path) for path in paths]


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _parts(path: str) -> list[str]:
    return [_form(part) for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _common_end(one: list[str], two: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(reversed(one), reversed(two))) if a != b), min(len(one), len(two)))


def _path_and_caption(entry: Any, where: str) -> tuple[str, str]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise _Unusable(f"{where} is {one_line(entry, 80)}, not [path, caption]")
    return _text(entry, where, 0), _text(entry, where, 1)


def read_coco(
    file: str | Path, images: str | Path, name: str, split: str, rules: Rules = USUAL_RULES
) -> list[CaptionTable]:
    """COCO's own caption JSON: images[].id, .file_name and annotations[].image_id, .caption. image_id is the file name.

    Raises:
        DataError: the JSON has another shape, or too many annotations name images that are not listed.
    """
    path = Path(file)
    content = _load(path)
    names: dict[str, str] = {}
    used: set[str] = set()

    def read_image(entry: Any, where: str) -> None:
        file_name, image_id = _text(entry, where, "file_name"), _id(entry.get("id"))
        if image_id is None:
            raise _Unusable(f"{where} lacks 'id'")
        if names.setdefault(image_id, file_name) != file_name:
            raise _Unusable(f"{where}: the id {one_line(image_id, 80)} was {one_line(names[image_id], 80)} before")

    def read_annotation(entry: Any, where: str) -> tuple[str, str, str, str]:
        caption, image_id = _text(entry, where, "caption"), _id(entry.get("image_id"))
        if image_id not in names:
            shown = one_line(entry.get("image_id"), 80)
            raise _Unusable(f"{where} belongs to image {shown}, which images[] does not list")
        used.add(image_id)
        return names[image_id], caption, _id(entry.get("id")) or "", image_id

    bad: list[Skipped] = []
    listed, annotated = _member(content, "images", path), _member(content, "annotations", path)
    if not annotated:
        raise DataError(f"{path}: the list 'annotations' is empty, so there is nothing to convert")
    n_images = len(_usable(listed, "images[{}]", read_image, bad))
    pairs = _usable(annotated, "annotations[{}]", read_annotation, bad)
    rules.check_left_out(bad, n_images + len(pairs), path, "; not COCO's caption layout")
    bare = (image_id for image_id in names if image_id not in used)
    bad += [Skipped(names[id], names[id], "empty", f"image {one_line(id, 80)} has no annotation") for id in bare]
    paths, captions, *coco_ids = ([row[column] for row in pairs] for column in range(4))
    return [_table(name, split, captions, paths, bad, path, Path(images), rules, coco_ids)]


def _id(value: object) -> str | None:
    """An image's id as text: 17, "17" and 17.0 are one, as JSON that went through a table has any of them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    text = str(value).strip()
    return text.removesuffix(".0") if re.fullmatch(r"\d+\.0", text) else text


def find_coco(root: str | Path, year: str | None = None) -> list[tuple[Path, Path, str]]:
    """COCO's files under `root`: (annotation file, image folder, split) of annotations/captions_{split}{year}.json.

    Raises:
        DataError: none is there, or two of a split and no year was given.
    """
    root = Path(root)
    files: dict[str, tuple[Path, Path, str]] = {}
    for path in sorted((root / "annotations").glob("captions_*.json")):
        match = re.fullmatch(r"captions_(train|val|test)(\d*)\.json", path.name)
        if match and year in (None, match.group(2)):
            split, folder = match.group(1), f"{match.group(1)}{match.group(2)}"
            if split in files:
                raise DataError(f"{path.parent} holds several caption files of split {split}; choose one with --year")
            images = root / folder if (root / folder).is_dir() else root / "images" / folder
            files[split] = path, images, split
    if not files:
        names = f"captions_{{train,val}}{year or '*'}.json"
        raise DataError(f"{root}/annotations holds no {names}; check --root and --year")
    return list(files.values())


def _load(path: Path) -> Any:
    require_text(path, "JSON", json=True)
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


def _usable(entries: list, where: str, read: Callable, bad: list[Skipped]) -> list:
    """What `read` makes of each entry and of where it stands; those that it refuses are added to `bad`."""
    contents = []
    for number, entry in enumerate(entries):
        try:
            contents.append(read(entry, where.format(number)))
        except _Unusable as error:
            bad.append(Skipped("", "", "malformed", str(error)))
    return contents


def _text(entry: Any, where: str, key: str | int) -> str:
    try:
        value = entry[key]
        value.encode()  # JSON can hold half of a character (a lone surrogate), which no file can
        return value
    except (KeyError, IndexError, TypeError):
        raise _Unusable(f"{where} lacks {key!r}") from None
    except (AttributeError, UnicodeEncodeError):
        raise _Unusable(f"{where}: {key!r} is no text") from None


def _table(
    name: str, split: str, captions: list, paths: list, bad: list, origin: Path, folder: Path, rules: Rules,
    coco_ids: list[list[str]] | None = None,
) -> CaptionTable:  # fmt: skip
    """`coco_ids`: COCO's numbers of each row's caption and image, kept where there are all."""
    # File names as ids, as ViLT has them, unless two images share one: then the paths.
    paths = normal_paths(pa.array(paths, pa.large_string()), folder).to_pylist()
    names = {path: Path(path).name for path in paths}
    ids = [names[path] for path in paths] if len(set(names.values())) == len(names) else paths
    columns = {"title": captions, "filepath": paths, "image_id": ids}
    if coco_ids and captions and all(map(all, coco_ids)):
        columns |= dict(zip(COCO_IDS, coco_ids))
    rows = Rows(columns, left_out=bad)
    return CaptionTable(name, split, rows, folder, origin, rules)


def _any_exists(base: Path, paths: list[str]) -> bool:
    """Whether one of some images, taken evenly from the list, is under `base`."""
    return any(is_file(base / path) for path in paths[:: len(paths) // _PROBES + 1])
