"""Captioned images in any of the usual layouts -> Arrow files for training, one command.

    python datasets/convert.py tsv --root DATA --name coco --out ARROW --workers 8
    python datasets/convert.py karpathy --root DATA --name f30k --out ARROW
    python datasets/convert.py folder --table my.tsv --name mine --split train --out ARROW
    python datasets/convert.py wds --root 'x/{00000..00331}.tar' --name mine --split train --out ARROW
    python datasets/convert.py hf --parquet 'x/train-*.parquet' --name mine --split train --out ARROW
    python datasets/convert.py demo --out ARROW --size 96 --vocab ARROW/vocab
    python datasets/convert.py tsv --root DATA --name gcc --out ARROW --shard 3/32     # one of 32 machines
    python datasets/convert.py check --out ARROW --name gcc
    python datasets/convert.py vocab --data ARROW --name mine --out ARROW/vocab

Costs one decode of every image, to be sure of it, and as much disk as the images take. A conversion that was cut off
goes on with the same command: finished shards are kept. Layouts, names and columns: datasets/README.md.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lexlip_data.convert import annotations, arguments, demo, readers
from lexlip_data.convert.check import check_folder
from lexlip_data.convert.image_reader import ImageReader
from lexlip_data.convert.shard_plan import ShardPlan
from lexlip_data.convert.vocabulary import build_tokenizer, read_captions
from lexlip_data.convert.writer import Report, write_split
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import find_arrow_files
from lexlip_data.sources.files import read_image
from lexlip_data.sources.registry import SPLITS, arrow_prefix, open_split
from lexlip_data.sources.skipped import Rules
from lexlip_data.sources.table import CaptionTable

# ViLT reads COCO and Flickr30k from one file per split, cuts GCC and SBU at 100,000, and numbers even a single shard.
_VILT_SHARD_IMAGES = {"coco": 0, "f30k": 0, "gcc": 100_000, "sbu": 100_000}
_SHARD_IMAGES = 50_000

_KINDS = {  # of what was left out -> in words
    "missing": "missing",
    "broken": "broken",
    "outside": "outside the data root",
    "unknown": "skipped by an earlier run",
    "empty": "rows without a caption or a file",
    "long": "rows with an absurdly long text",
    "malformed": "malformed rows",
    "repeated": "rows that give an id to a second file",
}


def run(command: list[str] | None) -> int:
    """Do what a command line says; returns the exit status: 1 for what `check` found wrong."""
    options = _parser().parse_args(command)
    options.rules = Rules(options.max_bad_share, tuple(map(str, options.picture_roots)))
    return options.command(options)


def convert(
    tables: list[CaptionTable], options: argparse.Namespace, read: Callable[[str], bytes] = read_image, **content: int
) -> int:
    """Write all splits of a data set, or one shard of each. `content`: what else decides the files' bytes."""
    only, shards = options.shard or (None, options.shards)
    with ImageReader(options.workers, read) as image_reader:
        for table in tables:
            table.keep_first(options.max_images)
            usual = _VILT_SHARD_IMAGES.get(table.name, _SHARD_IMAGES)
            per_shard = usual if options.shard_images is None else options.shard_images
            plan = ShardPlan(
                table, options.out, arrow_prefix(table.name, table.split), shards=shards,
                shard_images=None if shards else per_shard or None,
                numbered=table.name in ("gcc", "sbu"), options={"layout": options.layout, **content},
            )  # fmt: skip
            report = write_split(plan, image_reader, only, options.overwrite, progress=not options.quiet)
            _print(report, "" if only is None else f", shard {only} of {shards}")
            if table.split not in SPLITS and (table.name, table.split) != ("coco", "restval"):
                print(
                    f"{report.prefix}: training reads the splits {', '.join(SPLITS)}, not {table.split!r}; where it is "
                    "one of them, rename it, or name its file with the key data_sets", file=sys.stderr,
                )  # fmt: skip
    return 0


def _tsv(options: argparse.Namespace) -> int:
    tables = readers.read_tsv(options.root, options.name, options.split, options.rules)
    for table in tables:
        restval = arrow_prefix("coco", "restval")
        if (table.name, table.split) == ("coco", "train") and find_arrow_files(options.out, restval):
            raise DataError(
                f"{options.out} holds {restval}.arrow, whose images coco_train.tsv holds too: "
                "training would see them twice. Remove it, or give another --out"
            )
    return convert(tables, options)


def _folder(options: argparse.Namespace) -> int:
    tables = readers.read_folder(options.table, options.name, options.split, options.images, options.rules)
    return convert(tables, options)


def _karpathy(options: argparse.Namespace) -> int:
    file = options.json
    if file is None:
        stem = f"dataset_{'flickr30k' if options.name == 'f30k' else options.name}.json"
        if not options.root or not options.name:
            raise DataError("karpathy: give --json FILE, or --root DIR and --name NAME")
        candidates = [options.root / "karpathy" / stem, options.root / stem]
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            raise DataError(f"none of {', '.join(map(str, candidates))} is there; give the file with --json")
    tables = annotations.read_karpathy(file, options.images, options.name, options.split, options.rules)
    return convert(tables, options)


def _annotations(options: argparse.Namespace) -> int:
    tables = annotations.read_annotations(options.root, options.layout, options.split, options.rules)
    return convert(tables, options)


def _coco_captions(options: argparse.Namespace) -> int:
    if options.annotations:
        if not options.images or not options.split or len(options.split) != 1:
            raise DataError("coco-captions: --annotations needs --images DIR and one --split")
        files = [(options.annotations, options.images, options.split[0])]
    elif options.root:
        files = annotations.find_coco(options.root, options.year)
    else:
        raise DataError("coco-captions: give --root DIR, or --annotations FILE --images DIR --split SPLIT")
    tables = []
    for file, images, split in files:
        if not options.split or split in options.split:
            tables += annotations.read_coco(file, images, options.name, split, options.rules)
    return convert(tables, options)


def _contained(options: argparse.Namespace) -> int:
    table_of = arguments.tars_of if options.layout == "wds" else arguments.parquet_of
    table = table_of(options, options.patterns, options.name, options.split, options.rules)
    return convert([table], options, table.read)


def _demo(options: argparse.Namespace) -> int:
    if not 8 <= options.size <= 2048:
        raise DataError(f"--size {options.size}: give 8 to 2048 pixels")
    tables = demo.read_openmoji()
    convert(tables, options, partial(demo.draw, size=options.size), size=options.size)
    demo.write_note(options.out, options.size)
    if options.vocab:
        _save_vocabulary(tables[:1], options.vocab, options.vocab_size)  # the first is train
    return 0


def _vocab(options: argparse.Namespace) -> int:
    opened = (open_split(options.data, name, options.split, rules=options.rules) for name in options.name)
    sources = [source for of_name in opened for source in of_name]
    if not sources:
        raise DataError(f"{options.data}: none of {', '.join(options.name)} has a split {options.split}")
    _save_vocabulary(sources, options.out, options.vocab_size)
    return 0


def _save_vocabulary(sources: list, folder: Path, size: int) -> None:
    captions, left_out = read_captions(sources)
    pieces = build_tokenizer(captions, folder, size)
    note = f" ({left_out:,} unusable ones left out)" if left_out else ""
    print(f"vocabulary of {pieces} word pieces, from {len(captions):,} captions{note}: {folder}")


def _check(options: argparse.Namespace) -> int:
    whole = True
    for split in check_folder(options.out, options.name, options.rules):
        for problem in split.problems:
            print(problem)
            whole = False
        if not split.problems:
            counts = sorted(split.skipped.items())
            left_out = ", ".join(f"{count:,} {_KINDS.get(kind, one_line(kind))}" for kind, count in counts)
            held = f"{split.files} file(s) whole, {split.images} images, {split.pairs} pairs"
            print(f"{split.prefix}: {held}" + (f"; left out: {left_out}" if left_out else ""))
    return 0 if whole else 1


def _print(report: Report, shard: str) -> None:
    counts = Counter(item.kind for item in report.left_out + report.skipped)
    always = ("missing", "broken")
    left_out = ", ".join(f"{counts[kind]} {words}" for kind, words in _KINDS.items() if counts[kind] or kind in always)
    files = f"{len(report.shards)} file(s)" + (f", {report.reused} kept from before" if report.reused else "")
    listed = f"; listed in {report.listed_in}" if counts else ""
    print(f"{report.prefix}{shard}: {report.images} images, {report.pairs} pairs, {files}; {left_out}{listed}")


def _parser() -> argparse.ArgumentParser:
    judging, common = arguments.judging(), arguments.common()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    def command(name: str, do: Callable, text: str, parent: argparse.ArgumentParser = common) -> Callable:
        sub = layouts.add_parser(name, parents=[parent], help=text, description=text)
        sub.set_defaults(command=do)
        return sub.add_argument

    def named(add: Callable) -> None:
        add("--name", type=arguments.name, required=True, help="name of the data set")
        add("--split", type=arguments.name, required=True, help="which split this is")

    add = command("tsv", _tsv, "the official TSV layout, or NAME/NAME_{split}.tsv")
    add("--root", type=Path, required=True, help="folder that holds COCO/, F30k/, CC4M/, sbu/ or NAME/")
    add("--name", type=arguments.name, required=True, help="coco, f30k, gcc, sbu or a name of your own")
    add("--split", type=arguments.name, nargs="+", help="default: all that are there")

    add = command("folder", _folder, "a table of your own: title, filepath[, image_id][, split][, long_caption]")
    add("--table", type=Path, required=True, help="TAB- or comma-separated, with a header")
    add("--images", type=Path, help="what file paths are relative to (default: the table's folder)")
    add("--name", type=arguments.name, required=True, help="name of the data set")
    add("--split", type=arguments.name, help="needed if the table has no split column")

    add = command("karpathy", _karpathy, "Karpathy's dataset_*.json")
    add("--root", type=Path, help="folder that holds [karpathy/]dataset_NAME.json")
    add("--json", type=Path, help="the JSON itself")
    add("--images", type=Path, help="folder of the images (default: looked for near the JSON)")
    add("--name", type=arguments.name, help="coco, f30k or another (default: the JSON's own name)")
    add("--split", type=arguments.name, nargs="+", help="default: all, restval too")

    for name, text in (("gcc", "train_annot.json, val_annot.json"), ("sbu", "annot.json")):
        add = command(name, _annotations, f"ViLT's sources of {name.upper()}: {text}, images in images_*/*/*")
        add("--root", type=Path, required=True, help="folder that holds them")
        add("--split", type=arguments.name, nargs="+", help="default: all that are there")

    add = command("coco-captions", _coco_captions, "COCO's own captions_{split}{year}.json")
    add("--root", type=Path, help="folder that holds annotations/ and {split}{year}/")
    add("--year", help="where --root holds several years")
    add("--annotations", type=Path, help="one JSON, instead of --root")
    add("--images", type=Path, help="its images")
    add("--split", type=arguments.name, nargs="+", help="of --annotations; with --root default: all")
    add("--name", type=arguments.name, default="coco2017", help="name of the data set (default: %(default)s)")

    add = command("wds", _contained, "tar shards in webdataset's layout: KEY.jpg with KEY.txt or KEY.json")
    given = {"dest": "patterns", "nargs": "+", "required": True, "metavar": "PATTERN"}
    add("--root", **given, help="such as 'x/{00000..00331}.tar' or 'x/*.tar'")
    arguments.of_tars(add)
    named(add)

    add = command("hf", _contained, "Parquet files, such as those of Hugging Face data sets")
    add("--parquet", **given, help="such as 'x/train-*.parquet'")
    arguments.of_parquet(add)
    add("--images", type=Path, help="what paths start from (default: the first file's folder)")
    named(add)

    add = command("demo", _demo, "OpenMoji drawings with their names: a small real data set, no download")
    add("--size", type=arguments.whole(1), default=96, help="pixels per side (default: %(default)s)")
    add("--vocab", type=Path, help="also train a tokenizer on the training captions and save it here")
    add("--vocab-size", type=arguments.whole(1), default=2000, help="word pieces at most (default: %(default)s)")

    text = "read converted files to their end: all shards there, whole, of one conversion, what they lack listed"
    add = command("check", _check, text, judging)
    add("--out", type=Path, required=True, help="the folder that was converted into")
    add("--name", type=arguments.name, help="one data set (default: all)")

    text = "train a WordPiece vocabulary on the training captions of converted files or tables"
    add = command("vocab", _vocab, text, judging)
    add("--data", type=Path, required=True, help="the data_root of training")
    add("--name", type=arguments.name, nargs="+", required=True, help="data sets")
    add("--split", type=arguments.name, default="train", help="default: %(default)s; others leak words")
    add("--out", type=Path, required=True, help="folder for the tokenizer")
    add("--vocab-size", type=arguments.whole(1), default=3000, help="word pieces at most (default: %(default)s)")
    return parser
