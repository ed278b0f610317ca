"""Captioned pictures in any of the usual layouts -> Arrow files for training, one command.

    python datasets/convert.py tsv --root DATA --name coco --out ARROW --workers 8
    python datasets/convert.py karpathy --root DATA --name f30k --out ARROW
    python datasets/convert.py folder --table my.tsv --name mine --split train --out ARROW
    python datasets/convert.py demo --out ARROW --size 96 --vocab ARROW/vocab
    python datasets/convert.py tsv --root DATA --name gcc --out ARROW --shard 3/32     # one of 32 machines
    python datasets/convert.py check --out ARROW --name gcc
    python datasets/convert.py vocab --data ARROW --name mine --out ARROW/vocab

Costs one decode of every picture, to be sure of it, and as much disk as the pictures take. A run that was cut off is
started again with the same command: finished shards are kept. Layouts, names and columns: datasets/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

try:
    import lexlip_data  # noqa: F401
except ImportError:  # run by path in a checkout that is not installed; the worker processes inherit the path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from lexlip_data.convert import annotations, arguments, demo, readers
from lexlip_data.convert.check import check_folder
from lexlip_data.convert.reading import PictureReader
from lexlip_data.convert.vocabulary import build_tokenizer, read_captions
from lexlip_data.convert.writer import Report, write_split
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.arrow import find_shards
from lexlip_data.sources.files import read_picture
from lexlip_data.sources.registry import always_numbered, arrow_prefix, open_split
from lexlip_data.sources.skipped import Rules
from lexlip_data.sources.table import CaptionTable

# ViLT reads COCO and Flickr30k from one file per split, and cuts GCC and SBU at 100,000.
_SHARD_IMAGES = {"coco": 0, "f30k": 0, "gcc": 100_000, "sbu": 100_000}
_OWN_SHARD_IMAGES = 50_000

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


def main(command: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(command)
    try:
        return options.run(options)
    except (DataError, OSError) as error:
        print(f"error: {one_line(error, 2000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the shard it was at", file=sys.stderr)
        return 130


def convert(
    tables: list[CaptionTable],
    options: argparse.Namespace,
    read: Callable[[str], bytes] = read_picture,
    **content: object,
) -> int:
    """Write all splits of a data set, or one shard of each. `content`: what else decides the files' bytes."""
    only, shards = options.shard or (None, options.shards)
    with PictureReader(options.workers, read) as reader:
        for table in tables:
            per_shard = options.shard_images
            if per_shard is None:
                per_shard = _SHARD_IMAGES.get(table.name, _OWN_SHARD_IMAGES)
            report = write_split(
                table, options.out, arrow_prefix(table.name, table.split), reader,
                shard_images=None if shards else per_shard or None, numbered=always_numbered(table.name),
                overwrite=options.overwrite, options={"layout": options.layout, **content},
                progress=not options.quiet, shards=shards, only=only,
            )  # fmt: skip
            _print(report, "" if only is None else f", shard {only} of {shards}")
    return 0


def _reading(options: argparse.Namespace) -> dict:
    """How much of a table is read, and what is accepted of it."""
    return {"max_images": options.max_images, "rules": _rules(options)}


def _rules(options: argparse.Namespace) -> Rules:
    return Rules(options.max_bad_share, tuple(map(str, getattr(options, "picture_roots", None) or ())))


def _tsv(options: argparse.Namespace) -> int:
    tables = readers.read_tsv(options.root, options.name, options.split, **_reading(options))
    for table in tables:
        restval = arrow_prefix("coco", "restval")
        if (table.name, table.split) == ("coco", "train") and find_shards(options.out, restval):
            raise DataError(
                f"{options.out} holds {restval}.arrow, whose pictures coco_train.tsv holds too: "
                "training would see them twice. Remove it, or give another --out"
            )
    return convert(tables, options)


def _folder(options: argparse.Namespace) -> int:
    tables = readers.read_folder(options.table, options.name, options.split, options.images, **_reading(options))
    return convert(tables, options)


def _karpathy(options: argparse.Namespace) -> int:
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
    tables = annotations.read_karpathy(file, images, options.name, options.split, **_reading(options))
    return convert(tables, options)


def _annotations(options: argparse.Namespace) -> int:
    tables = annotations.read_annotations(options.root, options.layout, options.split, **_reading(options))
    return convert(tables, options)


def _coco_captions(options: argparse.Namespace) -> int:
    if options.annotations:
        if not options.images or not options.split or len(options.split) != 1:
            raise DataError("coco-captions: --annotations needs --images DIR and one --split")
        found = [(options.annotations, options.images, options.split[0])]
    elif options.root:
        found = annotations.find_coco(options.root, options.year)
        found = [item for item in found if not options.split or item[2] in options.split]
    else:
        raise DataError("coco-captions: give --root DIR, or --annotations FILE --images DIR --split SPLIT")
    tables = []
    for file, images, split in found:
        tables += annotations.read_coco(file, images, options.name, split, **_reading(options))
    return convert(tables, options)


def _demo(options: argparse.Namespace) -> int:
    if not 8 <= options.size <= 2048:
        raise DataError(f"--size {options.size}: give 8 to 2048 pixels")
    demo.check_drawing()
    tables = demo.read_openmoji(options.max_images)
    convert(tables, options, partial(demo.draw, size=options.size), size=options.size)
    demo.write_note(options.out, options.size)
    if options.vocab:
        train = [table for table in tables if table.split == "train"]
        _save_vocabulary(train, options.vocab, options.vocab_size)
    return 0


def _vocab(options: argparse.Namespace) -> int:
    sources = [
        source
        for name in options.name
        for source in open_split(options.data, name, options.split, rules=_rules(options))
    ]
    if not sources:
        raise DataError(f"{options.data}: none of {', '.join(options.name)} has a split {options.split}")
    _save_vocabulary(sources, options.out, options.vocab_size)
    return 0


def _save_vocabulary(sources: list, folder: Path, size: int) -> None:
    captions, left_out = read_captions(sources)
    pieces = build_tokenizer(captions, folder, size)
    note = f" ({left_out:,} unusable ones left out)" if left_out else ""
    print(f"vocabulary of {pieces} pieces, from {len(captions):,} captions{note}: {folder}")


def _check(options: argparse.Namespace) -> int:
    whole = True
    for split in check_folder(options.out, options.name, _rules(options)):
        for problem in split.problems:
            print(problem)
        if split.problems:
            whole = False
            continue
        left_out = ", ".join(
            f"{count:,} {_KINDS.get(kind, one_line(kind))}" for kind, count in sorted(split.skipped.items())
        )
        print(
            f"{split.prefix}: {split.files} file(s) whole, {split.pictures} pictures, {split.pairs} pairs"
            + (f"; left out: {left_out}" if left_out else "")
        )
    return 0 if whole else 1


def _print(report: Report, shard: str) -> None:
    kept = f", {report.reused} kept from before" if report.reused else ""
    counts = {kind: report.count(kind) for kind in _KINDS}
    always = ("missing", "broken")
    print(
        f"{report.prefix}{shard}: {report.pictures} pictures, {report.pairs} pairs, {len(report.shards)} file(s)"
        + f"{kept}; "
        + ", ".join(f"{count} {_KINDS[kind]}" for kind, count in counts.items() if count or kind in always)
        + (f"; listed in {report.listed_in}" if report.skipped or report.left_out else "")
    )


def _parser() -> argparse.ArgumentParser:
    judging, common = arguments.judging(), arguments.common()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    def layout(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = layouts.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = layout("tsv", _tsv, "the official TSV layout, or NAME/NAME_{split}.tsv")
    sub.add_argument("--root", type=Path, required=True, help="folder that holds COCO/, F30k/, CC4M/, sbu/ or NAME/")
    sub.add_argument("--name", type=arguments.name, required=True, help="coco, f30k, gcc, sbu or a name of your own")
    sub.add_argument("--split", type=arguments.name, nargs="+", help="default: all that are there")

    sub = layout("folder", _folder, "a table of your own: title, filepath[, image_id][, split][, long_caption]")
    sub.add_argument("--table", type=Path, required=True, help="TAB- or comma-separated, with a header")
    sub.add_argument("--images", type=Path, help="what file paths are relative to (default: the table's folder)")
    sub.add_argument("--name", type=arguments.name, required=True, help="name of the data set")
    sub.add_argument("--split", type=arguments.name, help="needed if the table has no split column")

    sub = layout("karpathy", _karpathy, "Karpathy's dataset_*.json")
    sub.add_argument("--root", type=Path, help="folder that holds [karpathy/]dataset_NAME.json")
    sub.add_argument("--json", type=Path, help="the JSON itself")
    sub.add_argument("--images", type=Path, help="folder of the pictures (default: looked for near the JSON)")
    sub.add_argument("--name", type=arguments.name, help="coco, f30k or another (default: the JSON's own name)")
    sub.add_argument("--split", type=arguments.name, nargs="+", help="default: all, restval too")

    for name, text in (("gcc", "train_annot.json, val_annot.json"), ("sbu", "annot.json")):
        sub = layout(name, _annotations, f"ViLT's sources of {name.upper()}: {text}, pictures in images_*/*/*")
        sub.add_argument("--root", type=Path, required=True, help="folder that holds them")
        sub.add_argument("--split", type=arguments.name, nargs="+", help="default: all that are there")

    sub = layout("coco-captions", _coco_captions, "COCO's own captions_{split}{year}.json")
    sub.add_argument("--root", type=Path, help="folder that holds annotations/ and {split}{year}/")
    sub.add_argument("--year", help="where --root holds several years")
    sub.add_argument("--annotations", type=Path, help="one JSON, instead of --root")
    sub.add_argument("--images", type=Path, help="its pictures")
    sub.add_argument("--split", type=arguments.name, nargs="+", help="of --annotations; with --root default: all")
    sub.add_argument(
        "--name", type=arguments.name, default="coco2017", help="name of the data set (default: %(default)s)"
    )

    sub = layout("demo", _demo, "OpenMoji drawings with their names: a small real data set, no download")
    sub.add_argument("--size", type=arguments.count, default=96, help="pixels per side (default: %(default)s)")
    sub.add_argument("--vocab", type=Path, help="also train a tokenizer on the training captions and save it here")
    sub.add_argument("--vocab-size", type=arguments.count, default=2000, help="pieces at most (default: %(default)s)")

    text = "read converted files to their end: all shards there, whole, of one conversion, what they lack listed"
    sub = layouts.add_parser("check", parents=[judging], help=text, description=text)
    sub.set_defaults(run=_check)
    sub.add_argument("--out", type=Path, required=True, help="the folder that was converted into")
    sub.add_argument("--name", type=arguments.name, help="one data set (default: all)")

    text = "train a WordPiece vocabulary on the training captions of converted files or tables"
    sub = layouts.add_parser("vocab", parents=[judging], help=text, description=text)
    sub.set_defaults(run=_vocab)
    sub.add_argument("--data", type=Path, required=True, help="the data_root of training")
    sub.add_argument("--name", type=arguments.name, nargs="+", required=True, help="data sets")
    sub.add_argument("--split", type=arguments.name, default="train", help="default: %(default)s; others leak words")
    sub.add_argument("--out", type=Path, required=True, help="folder for the tokenizer")
    sub.add_argument("--vocab-size", type=arguments.count, default=3000, help="pieces at most (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
