"""What the converter's commands have in common on the command line: options, and the forms of their values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from lexlip_data.sources.files import is_name
from lexlip_data.sources.skipped import MAX_BAD_SHARE, SMALL


def name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: use letters, digits, '.', '_' and '-' only; it becomes a file name"
        )
    return text


def whole(least: int) -> Callable[[str], int]:
    """The type of a whole number that is not below `least`."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a number from {least} up")
        return int(text)

    return parse


def shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"{text!r}: give i/n, i from 0 to n - 1, such as 0/8")
    return int(number), int(total)


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction from 0 to 1, such as {MAX_BAD_SHARE}")
    return value


def judging() -> argparse.ArgumentParser:
    """How much may be bad."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--max-bad-share", type=fraction, default=MAX_BAD_SHARE, metavar="FRACTION",
        help="refuse a split of which more is bad: images (but "
        f"{SMALL}, or a third of fewer, are never too many) or rows (default: %(default)s)",
    )  # fmt: skip
    return parser


def common() -> argparse.ArgumentParser:
    """What every layout's command takes."""
    parser = argparse.ArgumentParser(add_help=False, parents=[judging()])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the Arrow files: the data_root of training")
    workers = min(8, os.cpu_count() or 1)
    add("--workers", type=whole(0), default=workers, help="reading processes; 0: none besides this")
    add("--max-images", type=whole(1), help="the first so many images of each split")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument(
        "--shard-images", type=whole(0),
        help="images per file; 0: one file per split (default: coco, f30k 0; gcc, sbu 100000; else 50000)",
    )  # fmt: skip
    cut.add_argument("--shards", type=whole(1), metavar="N", help="cut each split into N files instead")
    cut.add_argument(
        "--shard", type=shard, metavar="I/N", help="of N files per split make only number I, from 0: for job arrays"
    )
    roots = "folders besides the data's own that paths and links of images may lead into"
    add("--picture-roots", type=Path, nargs="+", metavar="DIR", help=roots)
    add("--overwrite", action="store_true", help="replace files of the same names")
    add("--quiet", action="store_true", help="no progress bar")
    return parser
