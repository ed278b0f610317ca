"""Data set name + split -> the files under data_root that hold it. Costs one look into the folder.

Arrow files come first (ours or ViLT's), then the table layout. A name that is not listed here follows the
convention `{name}_{split}.arrow` or `{name}/{name}_{split}.tsv`; the key `data_sets` names any other files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lexlip_data.errors import DataError
from lexlip_data.sources.arrow import ArrowSource, find_arrow_files, require_all
from lexlip_data.sources.files import is_file
from lexlip_data.sources.skipped import USUAL_RULES, Rules
from lexlip_data.sources.source import Source
from lexlip_data.sources.table import TsvSource

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
DataSets = Mapping[str, Mapping[str, "str | list[str]"]]

# The official sets, with the splits that they have and the table of each.
_TABLES: dict[str, dict[str, str]] = {
    "coco": {split: f"COCO/coco_{split}.tsv" for split in SPLITS},
    "f30k": {split: f"F30k/f30k_{split}.tsv" for split in SPLITS},
    "gcc": {"train": "CC4M/Train_GCC-training_output.csv", "val": "CC4M/Validation_GCC-1.1.0-Validation_output.csv"},
    "sbu": {"train": "sbu/sbu_out.tsv"},
}
VG = "vg"  # Visual Genome's region descriptions, as ViLT writes them: one file without a split, all for training


def arrow_prefix(name: str, split: str) -> str:
    """The file prefix under which the converter writes a split (any split name, `restval` too)."""
    if name in ("coco", "f30k"):
        return f"{name}_caption_karpathy_{split}"
    if name == "gcc":
        return f"conceptual_caption_{split}"
    return "sbu" if name == "sbu" and split == "train" else f"{name}_{split}"


def _arrow_prefixes(root: Path, name: str, split: str) -> list[str]:
    """Where a split is looked for: the first prefix is required, the others are added where they exist."""
    if (name, split) == (VG, "train") and find_arrow_files(root, VG):
        return [VG]
    if split not in _TABLES.get(name, SPLITS):
        return []
    parts = ("train", "restval") if (name, split) == ("coco", "train") else (split,)
    return [arrow_prefix(name, part) for part in parts]


def table_paths(name: str, split: str) -> list[str]:
    """Where the table of a split may lie, relative to data_root."""
    if name in _TABLES:
        return [_TABLES[name][split]] if split in _TABLES[name] else []
    return [f"{name}/{name}_{split}.tsv", f"{name}/{name}_{split}.csv"]


def open_split(
    data_root: str | Path,
    name: str,
    split: str,
    data_sets: DataSets | None = None,
    max_images: int | Mapping[str, int] | None = None,
    rules: Rules = USUAL_RULES,
) -> list[Source]:
    """The sources of one data set and split, in a fixed order; [] where the data set has no such split.

    Args:
        data_root: folder of the Arrow files or of the table folders.
        name: data set, e.g. "coco".
        split: train, val or test.
        data_sets: own files per data set and split: Arrow prefixes, or paths of .arrow, .tsv or .csv files.
        max_images: cap on images of this data set and split, or caps by data set name.
        rules: how many bad rows of a table are too many, and where its images may lie besides `data_root`.
    Raises:
        DataError: a file that data_sets names is absent, or a file is unusable.
    """
    root = Path(data_root)
    cap = max_images.get(name) if isinstance(max_images, Mapping) else max_images
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise DataError(f"max_images of {name} is {cap!r}: give a positive number of images, or leave it out")
    if data_sets and name in data_sets:
        return _open_own(root, name, split, data_sets[name], cap, rules)
    prefixes = _arrow_prefixes(root, name, split)
    files = [find_arrow_files(root, prefix) for prefix in prefixes]
    if any(files):
        if not files[0]:
            raise DataError(f"data set {name}: {root} holds {prefixes[1]}.arrow but not {prefixes[0]}.arrow")
        for prefix, paths in zip(prefixes, files, strict=True):
            if not paths:
                # No error: a coco_train.tsv holds restval's images too, so its conversion makes no such file.
                log.warning("data set %s: no %s.arrow in %s, going on without it", name, prefix, root)
            require_all(paths)
        return [ArrowSource(name, split, [path for paths in files for path in paths], cap)]
    for relative in table_paths(name, split):
        if is_file(root / relative):
            return [TsvSource(name, split, root / relative, cap, rules, root)]
    return []


def require_data_set(data_root: str | Path, name: str, data_sets: DataSets | None = None) -> None:
    """Raise a DataError that names every file looked for if the data set has no split at all under data_root."""
    root = Path(data_root)
    if data_sets and name in data_sets:
        return  # opening a split names what is absent
    looked_for = []
    for split in SPLITS:
        prefixes, tables = _arrow_prefixes(root, name, split), table_paths(name, split)
        if any(find_arrow_files(root, prefix) for prefix in prefixes) or any(is_file(root / path) for path in tables):
            return
        looked_for += [f"{prefix}[_0].arrow" for prefix in prefixes] + tables
    looked_for = [*([f"{VG}.arrow"] if name == VG else []), *looked_for]
    problem = "holds none of its files" if root.is_dir() else "does not exist"
    raise DataError(
        f"data set {name}: the folder {root} {problem}; looked for {', '.join(looked_for)}. "
        "Set data_root, or make the files with datasets/convert.py"
    )


def _open_own(
    root: Path, name: str, split: str, files: Mapping[str, str | list[str]], cap: int | None, rules: Rules
) -> list[Source]:
    if unknown := set(files) - set(SPLITS):
        raise DataError(f"data_sets: {name} has a split {sorted(unknown)[0]!r}; splits are {', '.join(SPLITS)}")
    entries = files.get(split, [])
    sources: list[Source] = []
    for entry in [entries] if isinstance(entries, str) else entries:
        left = None if cap is None else cap - sum(map(len, sources))
        if left == 0:
            break
        path = root / entry
        if entry.endswith((".tsv", ".csv")):
            sources.append(TsvSource(name, split, path, left, rules, root))
            continue
        paths = [path]
        if not entry.endswith(".arrow"):
            paths = find_arrow_files(path.parent, path.name)
            if not paths:
                raise DataError(f"data_sets: {name} {split}: neither {entry}.arrow nor {entry}_0.arrow is in {root}")
            require_all(paths)
        sources.append(ArrowSource(name, split, paths, left))
    return sources
