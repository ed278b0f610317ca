"""Readers of tables, the official layout and one's own: each gives one table per split. No image is opened.

`rules` say how many bad rows are too many; those that are few are left out, and listed with the first table. For JSON
see `annotations.py`.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import is_name
from lexlip_data.sources.registry import SPLITS, table_paths
from lexlip_data.sources.skipped import USUAL_RULES, Rules
from lexlip_data.sources.table import CaptionTable, TsvSource
from lexlip_data.sources.tsv import read_columns


def read_tsv(
    root: str | Path, name: str, splits: Iterable[str] | None = None, rules: Rules = USUAL_RULES
) -> list[CaptionTable]:
    """The table layout under `root`: COCO/coco_train.tsv and so on, or NAME/NAME_train.tsv; all or some splits.

    Raises:
        DataError: a wanted split, or every split, is absent.
    """
    root = Path(root)
    looked_for: list[Path] = []
    tables: list[CaptionTable] = []
    for split in splits or SPLITS:
        candidates = [root / relative for relative in table_paths(name, split)]
        path = next((path for path in candidates if path.exists()), None)
        if path is not None:
            tables.append(TsvSource(name, split, path, None, rules, root))
        elif splits:
            absent = ", ".join(map(str, candidates)) or "-"
            raise DataError(f"data set {name} has no split {split}: looked for {absent}")
        looked_for += candidates
    if not tables:
        raise DataError(f"data set {name}: none of {', '.join(map(str, looked_for))} is there; check --root and --name")
    return tables


def read_folder(
    table: str | Path, name: str, split: str | None = None, images: str | Path | None = None, rules: Rules = USUAL_RULES
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
    splits = rows.columns.get("split")
    if splits is None:
        if not split:
            raise DataError(f"{path}: no column split, so say which split this is with --split")
        groups = {split: rows}
    else:
        names = [value for value in pc.unique(splits).to_pylist() if is_name(value)]  # it becomes part of a file's name
        unnamed = np.flatnonzero(~np.asarray(pc.is_in(splits, pa.array(names, pa.large_string())))).tolist()
        rows = rows.leave_out({i: ("malformed", f"{one_line(splits[i].as_py(), 80)!r} is no split") for i in unnamed})
        rules.check_left_out(rows.left_out, len(rows), path)
        wanted = [split] if split else names
        if absent := [value for value in wanted if value not in names]:
            raise DataError(f"{path}: no row of split {absent[0]!r}; its splits are {', '.join(names) or '-'}")
        groups = {value: rows.select(np.asarray(pc.equal(rows.columns["split"], value))) for value in wanted}
        if groups:
            groups[wanted[0]].left_out = rows.left_out
    folder = path.parent if images is None else Path(images)
    return [CaptionTable(name, value, group, folder, path, rules) for value, group in groups.items()]
