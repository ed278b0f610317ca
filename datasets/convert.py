"""Captioned pictures in any of the usual layouts -> Arrow files for training, one command.

    python datasets/convert.py tsv --root DATA --name coco --out ARROW --workers 8
    python datasets/convert.py karpathy --root DATA --name f30k --out ARROW
    python datasets/convert.py folder --table my.tsv --name mine --split train --out ARROW
    python datasets/convert.py demo --out ARROW --size 96 --vocab ARROW/vocab

Costs one decode of every picture, to be sure of it, and as much disk as the pictures take. A run that was cut off is
started again with the same command: finished shards are kept. Layouts, names and columns: datasets/README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

try:
    import lexlip_data  # noqa: F401
except ImportError:  # run by path in a checkout that is not installed; the worker processes inherit the path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from lexlip_data import demo, readers
from lexlip_data.arrow import find_shards
from lexlip_data.errors import DataError
from lexlip_data.registry import always_numbered, arrow_prefix
from lexlip_data.table import CaptionTable
from lexlip_data.writer import PictureReader, Report, read_file, write_split

# ViLT reads COCO and Flickr30k from one file per split, and cuts GCC and SBU at 100,000.
_SHARD_IMAGES = {"coco": 0, "f30k": 0, "gcc": 100_000, "sbu": 100_000}
_OWN_SHARD_IMAGES = 50_000


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        reports = options.run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the shard it was at", file=sys.stderr)
        return 130
    _print(reports, options.out)
    return 0


def convert(
    tables: list[CaptionTable], options: argparse.Namespace, read: Callable[[str], bytes] = read_file, **content: object
) -> list[Report]:
    """Write all splits of a data set. `content`: what else decides the files' bytes."""
    reports = []
    with PictureReader(options.workers, read) as reader:
        for table in tables:
            own = options.shard_images
            shard_images = _SHARD_IMAGES.get(table.name, _OWN_SHARD_IMAGES) if own is None else own
            reports.append(
                write_split(
                    table, options.out, arrow_prefix(table.name, table.split), reader,
                    shard_images=shard_images or None, numbered=always_numbered(table.name),
                    overwrite=options.overwrite, options={"layout": options.layout, **content},
                    progress=not options.quiet,
                )
            )  # fmt: skip
    return reports


def _tsv(options: argparse.Namespace) -> list[Report]:
    tables = readers.read_tsv(options.root, options.name, options.split, options.max_images)
    for table in tables:
        restval = arrow_prefix("coco", "restval")
        if (table.name, table.split) == ("coco", "train") and find_shards(options.out, restval):
            raise DataError(
                f"{options.out} holds {restval}.arrow, whose pictures coco_train.tsv holds too: "
                "training would see them twice. Remove it, or give another --out"
            )
    return convert(tables, options)


def _folder(options: argparse.Namespace) -> list[Report]:
    tables = readers.read_folder(options.table, options.name, options.split, options.images, options.max_images)
    return convert(tables, options)


def _karpathy(options: argparse.Namespace) -> list[Report]:
    file, images = options.json, options.images
    if file is None:
        names = {"f30k": "flickr30k"}
        stem = f"dataset_{names.get(options.name, options.name)}.json"
        if not options.root or not options.name:
            raise DataError("karpathy: give --json FILE, or --root DIR and --name NAME")
        candidates = [options.root / "karpathy" / stem, options.root / stem]
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            raise DataError(f"none of {', '.join(map(str, candidates))} is there; give the file with --json")
    return convert(readers.read_karpathy(file, images, options.name, options.split, options.max_images), options)


def _annotations(options: argparse.Namespace) -> list[Report]:
    tables = readers.read_annotations(options.root, options.layout, options.split, options.max_images)
    return convert(tables, options)


def _coco_captions(options: argparse.Namespace) -> list[Report]:
    if options.annotations:
        if not options.images or not options.split or len(options.split) != 1:
            raise DataError("coco-captions: --annotations needs --images DIR and one --split")
        found = [(options.annotations, options.images, options.split[0])]
    elif options.root:
        found = readers.find_coco(options.root, options.year)
        found = [item for item in found if not options.split or item[2] in options.split]
    else:
        raise DataError("coco-captions: give --root DIR, or --annotations FILE --images DIR --split SPLIT")
    tables = []
    for file, images, split in found:
        tables += readers.read_coco(file, images, options.name, split, options.max_images)
    return convert(tables, options)


def _demo(options: argparse.Namespace) -> list[Report]:
    if not 8 <= options.size <= 2048:
        raise DataError(f"--size {options.size}: give 8 to 2048 pixels")
    demo.check_drawing()
    tables = demo.read_openmoji(options.max_images)
    reports = convert(tables, options, partial(demo.draw, size=options.size), size=options.size)
    demo.write_note(options.out, options.size)
    if options.vocab:
        train = next(table for table in tables if table.split == "train")
        captions = [caption for i in range(len(train)) for caption in train.captions(i)]
        pieces = demo.build_tokenizer(captions, options.vocab, options.vocab_size)
        print(f"vocabulary of {pieces} pieces, from the training captions: {options.vocab}")
    return reports


def _print(reports: list[Report], out: Path) -> None:
    for report in reports:
        kept = f", {report.reused} kept from before" if report.reused else ""
        line = (
            f"{report.prefix}: {report.pictures} pictures, {report.pairs} pairs, {len(report.shards)} file(s){kept}; "
            f"{report.count('missing')} missing, {report.count('broken')} broken"
        )
        if unknown := report.count("unknown"):
            line += f", {unknown} skipped by an earlier run"
        if report.empty_rows:
            line += f", {report.empty_rows} rows without a caption or a file"
        if report.skipped:
            line += f"; listed in {out / (report.prefix + '_skipped.tsv')}"
        print(line)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: use letters, digits, '.', '_' and '-' only; it becomes a file name"
        )
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 up")
    return int(text)


def _zero_or_more(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 up")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, help="folder for the Arrow files: the data_root of training")
    common.add_argument(
        "--workers",
        type=_zero_or_more,
        default=min(8, os.cpu_count() or 1),
        help="reading processes; 0: none besides this",
    )
    common.add_argument("--max-images", type=_count, help="the first so many pictures of each split")
    common.add_argument(
        "--shard-images", type=_zero_or_more,
        help="pictures per file; 0: one file per split (default: coco, f30k 0; gcc, sbu 100000; else 50000)",
    )  # fmt: skip
    common.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    def layout(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = layouts.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = layout("tsv", _tsv, "the official TSV layout, or NAME/NAME_{split}.tsv")
    sub.add_argument("--root", type=Path, required=True, help="folder that holds COCO/, F30k/, CC4M/, sbu/ or NAME/")
    sub.add_argument("--name", type=_name, required=True, help="coco, f30k, gcc, sbu or a name of your own")
    sub.add_argument("--split", type=_name, nargs="+", help="default: all that are there")

    sub = layout("folder", _folder, "a table of your own: title, filepath[, image_id][, split][, long_caption]")
    sub.add_argument("--table", type=Path, required=True, help="TAB- or comma-separated, with a header")
    sub.add_argument("--images", type=Path, help="what file paths are relative to (default: the table's folder)")
    sub.add_argument("--name", type=_name, required=True, help="name of the data set")
    sub.add_argument("--split", type=_name, help="needed if the table has no split column")

    sub = layout("karpathy", _karpathy, "Karpathy's dataset_*.json")
    sub.add_argument("--root", type=Path, help="folder that holds [karpathy/]dataset_NAME.json")
    sub.add_argument("--json", type=Path, help="the JSON itself")
    sub.add_argument("--images", type=Path, help="folder of the pictures (default: looked for near the JSON)")
    sub.add_argument("--name", type=_name, help="coco, f30k or another (default: the JSON's own name)")
    sub.add_argument("--split", type=_name, nargs="+", help="default: all, restval too")

    for name, text in (("gcc", "train_annot.json, val_annot.json"), ("sbu", "annot.json")):
        sub = layout(name, _annotations, f"ViLT's sources of {name.upper()}: {text}, pictures in images_*/*/*")
        sub.add_argument("--root", type=Path, required=True, help="folder that holds them")
        sub.add_argument("--split", type=_name, nargs="+", help="default: all that are there")

    sub = layout("coco-captions", _coco_captions, "COCO's own captions_{split}{year}.json")
    sub.add_argument("--root", type=Path, help="folder that holds annotations/ and {split}{year}/")
    sub.add_argument("--year", help="where --root holds several years")
    sub.add_argument("--annotations", type=Path, help="one JSON, instead of --root")
    sub.add_argument("--images", type=Path, help="its pictures")
    sub.add_argument("--split", type=_name, nargs="+", help="with --annotations: its split; with --root: default all")
    sub.add_argument("--name", type=_name, default="coco2017", help="name of the data set (default: %(default)s)")

    sub = layout("demo", _demo, "OpenMoji drawings with their names: a small real data set, no download")
    sub.add_argument("--size", type=_count, default=96, help="pixels per side (default: %(default)s)")
    sub.add_argument("--vocab", type=Path, help="also train a tokenizer on the training captions and save it here")
    sub.add_argument("--vocab-size", type=_count, default=3000, help="pieces at most (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
