"""One small reader per layout in which people hold captioned pictures: each gives one table per split.

Costs the parse of the annotation file; JSON is held whole while it is turned into a table, no picture is opened.
`max_images` keeps the first so many pictures of each split.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from lexlip_data.errors import DataError
from lexlip_data.registry import SPLITS, table_paths
from lexlip_data.table import CaptionTable, TsvSource, read_columns

_KARPATHY_NAMES = {"flickr30k": "f30k"}  # the JSON's own name -> ours
_PROBES = 50  # pictures tried before a folder is taken not to be the right one


def read_tsv(
    root: str | Path, name: str, splits: Iterable[str] | None = None, max_images: int | None = None
) -> list[CaptionTable]:
    """The table layout under `root`: COCO/coco_train.tsv and so on, or NAME/NAME_train.tsv.

    Args:
        splits: those wanted; None: those that are there.
    Raises:
        DataError: a wanted split, or every split, is absent.
    """
    root = Path(root)
    looked_for, tables = [], []
    for split in splits or SPLITS:
        candidates = [root / relative for relative in table_paths(name, split)]
        found = [path for path in candidates if path.is_file()]
        if found:
            tables.append(TsvSource(name, split, found[0], max_images))
        elif splits:
            raise DataError(
                f"data set {name} has no split {split}: looked for {', '.join(map(str, candidates)) or '-'}"
            )
        looked_for += candidates
    if not tables:
        raise DataError(f"data set {name}: none of {', '.join(map(str, looked_for))} is there; check --root and --name")
    return tables


def read_folder(
    table: str | Path,
    name: str,
    split: str | None = None,
    images: str | Path | None = None,
    max_images: int | None = None,
) -> list[CaptionTable]:
    """One table file of your own: title, filepath, and optionally image_id, split, long_caption.

    Args:
        split: of all rows if the table has no split column; else the only split wanted (None: all of them).
        images: what file paths are relative to; None: the table's folder.
    Raises:
        DataError: there is neither a split column nor `split`, or a split has no rows.
    """
    path = Path(table)
    columns = read_columns(path)
    folder = path.parent if images is None else Path(images)
    if "split" not in columns and not split:
        raise DataError(f"{path}: no column split, so say which split this is with --split")
    if "split" not in columns:
        groups = {split: columns}
    else:
        names = [value for value in pc.unique(columns["split"]).to_pylist() if value]
        wanted = [split] if split else names
        if absent := [value for value in wanted if value not in names]:
            raise DataError(f"{path}: no row of split {absent[0]!r}; its splits are {', '.join(names) or '-'}")
        groups = {
            value: {key: column.filter(pc.equal(columns["split"], value)) for key, column in columns.items()}
            for value in wanted
        }
    return [
        CaptionTable(
            name, value, group["title"], group["filepath"], group.get("image_id"), group.get("long_caption"),
            folder=folder, max_images=max_images, origin=str(path),
        )
        for value, group in groups.items()
    ]  # fmt: skip


def read_karpathy(
    file: str | Path,
    images: str | Path | None = None,
    name: str | None = None,
    splits: Iterable[str] | None = None,
    max_images: int | None = None,
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
    name = name or _KARPATHY_NAMES.get(content.get("dataset"), content.get("dataset"))
    if not name:
        raise DataError(f"{path}: the JSON names no data set; give --name")
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for number, entry in enumerate(entries):
        try:
            filename, subfolder, split = entry["filename"], entry.get("filepath", ""), entry["split"]
            sentences = [sentence["raw"] for sentence in entry["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: images[{number}] lacks {error}; not Karpathy's layout") from error
        rows.setdefault(split, []).extend((caption, filename, subfolder) for caption in sentences)
    wanted = list(splits) if splits else list(rows)
    if absent := [split for split in wanted if split not in rows]:
        raise DataError(f"{path}: no picture of split {absent[0]!r}; its splits are {', '.join(rows)}")
    if images is not None:
        bases = [Path(images)]
    else:
        homes = [path.parent, path.parent.parent]
        bases = [home / sub for home in homes for sub in ("", "images", f"{name}-images", "flickr30k-images")]
    tables = []
    for split in wanted:
        captions, filenames, subfolders = zip(*rows[split], strict=True) if rows[split] else ((), (), ())
        pairs = list(zip(subfolders, filenames, strict=True))
        # COCO's folders train2014/ and val2014/ are in the JSON; other sets repeat a folder that people leave out.
        relative = [[str(Path(sub) / file) for sub, file in pairs], list(filenames)]
        base, paths = next(
            ((base, paths) for base in bases for paths in relative if _any_exists(base, paths)), (bases[0], relative[0])
        )
        ids = _short_ids(paths)
        tables.append(
            CaptionTable(name, split, list(captions), paths, ids, folder=base, max_images=max_images, origin=str(path))
        )
    return tables


def read_annotations(
    root: str | Path, name: str, splits: Iterable[str] | None = None, max_images: int | None = None
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
    wanted = list(splits) if splits else [split for split in files if (root / files[split]).is_file()]
    if not wanted:
        raise DataError(f"{root}: none of {', '.join(files.values())} is there; check --root")
    tables = []
    for split in wanted:
        path = root / files[split]
        entries = _load(path)
        captions, paths = [], []
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
                raise DataError(f"{path}: entry {number} is {str(entry)[:80]}, not [path, caption]")
            paths.append(entry[0])
            captions.append(entry[1])
        if paths and not _any_exists(root, paths):
            paths = _by_file_name(root / f"images_{split}", root, paths)
        tables.append(
            CaptionTable(
                name, split, captions, paths, _short_ids(paths), folder=root, max_images=max_images, origin=str(path)
            )
        )
    return tables


def read_coco(
    file: str | Path, images: str | Path, name: str, split: str, max_images: int | None = None
) -> list[CaptionTable]:
    """COCO's own caption JSON: images[].id, .file_name and annotations[].image_id, .caption. image_id is the file name.

    Raises:
        DataError: the JSON has another shape, or an annotation names a picture that is not listed.
    """
    path = Path(file)
    content = _load(path)
    try:
        names = {entry["id"]: entry["file_name"] for entry in _member(content, "images", path)}
        annotations = [(entry["image_id"], entry["caption"]) for entry in _member(content, "annotations", path)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an entry lacks {error}; not COCO's caption layout") from error
    if stray := [image for image, _ in annotations if image not in names]:
        raise DataError(f"{path}: a caption belongs to picture {stray[0]}, which images[] does not list")
    captions, paths = [caption for _, caption in annotations], [names[image] for image, _ in annotations]
    return [
        CaptionTable(
            name, split, captions, paths, _short_ids(paths), folder=images, max_images=max_images, origin=str(path)
        )
    ]


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
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); it may be a broken copy") from error


def _member(content: object, key: str, path: Path) -> list:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: no list {key!r} at the top of the JSON")
    return content[key]


def _any_exists(base: Path, paths: list[str]) -> bool:
    """Whether one of some pictures, taken evenly from the list, is under `base`."""
    picks = np.unique(np.linspace(0, len(paths) - 1, min(_PROBES, len(paths))).astype(int)) if paths else []
    return any((base / paths[int(i)]).is_file() for i in picks)


def _short_ids(paths: list[str]) -> list[str]:
    """File names, as ViLT has them, unless two pictures share one: then the paths."""
    names = {path: Path(path).name for path in paths}
    return [names[path] for path in paths] if len(set(names.values())) == len(names) else paths


def _by_file_name(folder: Path, root: Path, paths: list[str]) -> list[str]:
    places = {path.name: str(path.relative_to(root)) for path in folder.glob("*/*")}
    return [places.get(Path(path).name, path) for path in paths]
