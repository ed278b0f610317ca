"""Readers of tables, the official layout and one's own: each gives one table per split. No picture is opened.

`max_images` keeps the first so many pictures of each split. `rules` say how many bad rows are too many; those that are
few are left out, and listed with the first table. For JSON see `annotations.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import is_name
from lexlip_data.sources.registry import SPLITS, table_paths
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped
from lexlip_data.sources.table import CaptionTable, TsvSource, read_columns


def read_tsv(
    root: str | Path,
    name: str,
    splits: Iterable[str] | None = None,
    max_images: int | None = None,
    rules: Rules = USUAL_RULES,
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
        found = [path for path in candidates if path.exists()]
        if found:
            tables.append(TsvSource(name, split, found[0], max_images, rules, root))
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
    rules: Rules = USUAL_RULES,
) -> list[CaptionTable]:
    """One table file of your own: title, filepath, and optionally image_id, split, long_caption.

    Args:
        split: of all rows if the table has no split column; else the only split wanted (None: all of them).
        images: what file paths are relative to; None: the table's folder.
    Raises:
        DataError: there is neither a split column nor `split`, or a split has no rows, or too many rows are bad.
    """
    path = Path(table)
    rows = read_columns(path, rules)
    folder = path.parent if images is None else Path(images)
    if "split" not in rows.columns and not split:
        raise DataError(f"{path}: no column split, so say which split this is with --split")
    if "split" not in rows.columns:
        groups = {split: np.ones(len(rows.numbers), dtype=bool)}
        bad = rows.bad
    else:
        # It becomes part of a file's name.
        splits = rows.columns["split"]
        names = [value for value in pc.unique(splits).to_pylist() if is_name(value)]
        stray = np.flatnonzero(~np.asarray(pc.is_in(splits, pa.array(names, pa.large_string()))))
        bad = rows.bad + [
            Skipped("", "", "malformed", f"row {rows.numbers[i]}: {one_line(splits[i].as_py(), 80)!r} is no split")
            for i in stray.tolist()
        ]
        rules.check_rows(len(bad), len(rows.numbers) + len(rows.bad), str(path), bad[0].reason if bad else "")
        wanted = [split] if split else names
        if absent := [value for value in wanted if value not in names]:
            raise DataError(f"{path}: no row of split {absent[0]!r}; its splits are {', '.join(names) or '-'}")
        groups = {value: np.asarray(pc.equal(splits, value)) for value in wanted}
    tables = []
    for number, (value, mask) in enumerate(groups.items()):
        columns = {key: column.filter(pa.array(mask)) for key, column in rows.columns.items()}
        tables.append(
            CaptionTable(
                name, value, columns["title"], columns["filepath"], columns.get("image_id"),
                columns.get("long_caption"), folder=folder, max_images=max_images, origin=str(path), rules=rules,
                numbers=rows.numbers[mask], left_out=() if number else bad,
            )
        )  # fmt: skip
    return tables
