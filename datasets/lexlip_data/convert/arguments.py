"""What the converter's commands have in common: options, and the types of their values. Loads nothing heavy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lexlip_data.sources.files import is_name
from lexlip_data.sources.skipped import MAX_BAD_SHARE, SMALL, Rules

if TYPE_CHECKING:
    from lexlip_data.sources.contained import ContainedTable


def _value(parse: Callable[[str], object], good: Callable, wanted: str) -> Callable[[str], object]:
    """The `type` of an option: what `parse` makes of a text, refused where it raises a ValueError or is not good."""

    def read(text: str) -> object:
        with suppress(ValueError):
            if good(value := parse(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r}: {wanted}")

    return read


def _digits(text: str) -> int:
    if not text.isdigit():
        raise ValueError(text)
    return int(text)


def whole(least: int) -> Callable[[str], object]:
    return _value(_digits, lambda number: number >= least, f"give a number from {least} up")


name = _value(str, is_name, "use letters, digits, '.', '_' and '-' only; it becomes a file name")
_shard = _value(
    lambda text: tuple(_digits(part) for part in text.split("/", 1)),
    lambda shard: len(shard) == 2 and shard[0] < shard[1],
    "give i/n, i from 0 to n - 1, such as 0/8",
)
_fraction = _value(float, lambda value: 0 <= value <= 1, f"give a fraction from 0 to 1, such as {MAX_BAD_SHARE}")


def judging() -> argparse.ArgumentParser:
    """How much may be bad."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.set_defaults(picture_roots=())
    parser.add_argument(
        "--max-bad-share", type=_fraction, default=MAX_BAD_SHARE, metavar="FRACTION",
        help="refuse a split if more than this is bad of its images (but "
        f"{SMALL}, or a third of fewer, are never too many) or rows (default: %(default)s)",
    )  # fmt: skip
    return parser


def common() -> argparse.ArgumentParser:
    """What every layout's command takes."""
    parser = argparse.ArgumentParser(add_help=False, parents=[judging()])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the Arrow files: the data_root of training")
    workers = min(8, os.cpu_count() or 1)
    add("--workers", type=whole(0), default=workers, help="processes that read images; 0: only this one")
    add("--max-images", type=whole(1), help="the first so many images of each split")
    cut = parser.add_mutually_exclusive_group()
    per_file = "images per file; 0: one file per split (default: coco, f30k 0; gcc, sbu 100000; else 50000)"
    cut.add_argument("--shard-images", type=whole(0), help=per_file)
    cut.add_argument("--shards", type=whole(1), metavar="N", help="cut each split into N files instead")
    alone = "of N files per split make only number I, from 0: for job arrays"
    cut.add_argument("--shard", type=_shard, metavar="I/N", help=alone)
    roots = "folders besides the data's own that paths and links of images may lead into"
    add("--picture-roots", type=Path, nargs="+", default=(), metavar="DIR", help=roots)
    add("--overwrite", action="store_true", help="replace files of the same names")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def of_tars(add: Callable) -> None:
    """How samples of tar shards are read."""
    fields = "the caption: the ending of its member, or a field of .json (default: .txt, else caption or text in .json)"
    add("--caption-key", metavar="KEY", help=fields)
    add("--image-key", metavar="KEY", help="the ending of the image's member (default: the first that is an image's)")
    add("--caption-lines", action="store_true", help="each line of a .txt is a caption")
    add("--shard-in-id", action="store_true", help="ids are SHARD/KEY, for keys that are unique in their shard only")


def tars_of(options: argparse.Namespace, patterns: list[str], name: str, split: str, rules: Rules) -> ContainedTable:
    """What `of_tars` was given, read. Raises DataError as `read_tars`."""
    from lexlip_data.sources.tar_shards import read_tars

    keys = options.caption_key, options.image_key, options.caption_lines, options.shard_in_id
    return read_tars(patterns, name, split, rules, *keys)


def of_parquet(add: Callable) -> None:
    """How rows of Parquet files are read."""
    add("--image", default="image", metavar="COLUMN", help="encoded images, structs of bytes and path, or paths")
    texts = "a text or a list of texts; sentences.raw: the field raw of each in sentences (default: %(default)s)"
    add("--caption", default="caption", metavar="COLUMN", help=texts)
    add("--id", metavar="COLUMN", help="rows of one id are one image (default: image_id or id, else file and row)")


def parquet_of(options: argparse.Namespace, patterns: list[str], name: str, split: str, rules: Rules) -> ContainedTable:
    """What `of_parquet` and --images were given, read. Raises DataError as `read_parquet`."""
    from lexlip_data.sources.parquet import read_parquet

    columns = options.image, options.caption, options.id, options.images
    return read_parquet(patterns, name, split, rules, *columns)
