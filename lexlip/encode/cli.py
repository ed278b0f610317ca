"""lexlip encode: a corpus of images or texts to shards of lexicon vectors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lexlip.errors import UserError
from lexlip.models.source import check_source
from lexlip.pretrained import DEFAULT
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input, check_output
from lexlip_data.convert import arguments
from lexlip_data.errors import one_line
from lexlip_data.sources.skipped import Rules


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `encode` into the parser of the `lexlip` command."""
    command = commands.add_parser("encode", help="images or texts to Arrow shards that `index build` reads")
    command.add_argument(
        "--model", default=DEFAULT, help=f"model folder, or a name on the hub (default: {DEFAULT}, which comes along)"
    )
    trust_option(command)
    corpus = command.add_argument_group("the corpus, one of these (--images goes with --tsv and --parquet too)")
    table_options(corpus, command, "train")
    corpus.add_argument(
        "--images", type=Path, metavar="DIR",
        help="all images under a folder, ids are their paths; with --tsv or --parquet: what file paths are relative to "
        "(default: the table's folder)",
    )  # fmt: skip
    corpus.add_argument(
        "--texts", type=Path, metavar="FILE", help="a text file, one document per line; ids count from 1"
    )
    command.add_argument("--out", type=Path, required=True, help="folder of the shards; the same command goes on there")
    command.add_argument(
        "--what", choices=("images", "texts"), default="images",
        help="but of --images and --texts: the images, or the captions with ids such as 17#0 (default: images)",
    )  # fmt: skip
    command.add_argument(
        "--picture-roots", type=Path, nargs="+", default=(), metavar="DIR",
        help="folders besides the corpus's own that paths and links of images may lead into",
    )  # fmt: skip
    command.add_argument("--top-k", type=int, metavar="K", help="keep the K heaviest terms of each (default: all)")
    command.add_argument("--id-prefix", default="", metavar="TEXT", help="put before every id")
    command.add_argument("--batch-size", type=int, default=64, help="documents at once (default: 64)")
    command.add_argument("--shard-documents", type=int, default=8192, help="documents per shard (default: 8192)")
    command.add_argument("--workers", type=int, default=0, help="processes that decode images (default: none)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU for each process where there is one)")
    command.add_argument(
        "--max-bad-share", type=float, default=0.01, help="of the documents that may be unreadable (default: 0.01)"
    )
    command.set_defaults(run=_run)


def table_options(corpus: argparse._ActionsContainer, command: argparse.ArgumentParser, split: str) -> None:
    """--arrow, --tsv, --tar and --parquet, and how those are read; `split` is for the help."""
    corpus.add_argument("--arrow", type=Path, nargs="+", metavar="FILE", help="Arrow files of captioned images")
    corpus.add_argument("--tsv", type=Path, metavar="FILE", help="a table: title, filepath, and optionally image_id")
    corpus.add_argument("--tar", nargs="+", metavar="PATTERN", help="tar shards, such as 'x/{00000..00331}.tar'")
    corpus.add_argument("--parquet", nargs="+", metavar="PATTERN", help=f"Parquet files, such as 'x/{split}-*.parquet'")
    arguments.of_tars(command.add_argument_group("of --tar").add_argument)
    arguments.of_parquet(command.add_argument_group("of --parquet").add_argument)


def table_of(options: argparse.Namespace, what: str, rules: Rules) -> Any:
    """The "images" or "texts" that `table_options` and --images were given; None without. Raises DataError."""
    from lexlip.encode.tables import of_table, read_arrow, read_tsv

    if options.arrow:
        return read_arrow(options.arrow, what)
    if options.tsv:
        return read_tsv(options.tsv, what, rules, options.images)
    if options.tar:
        return of_table(arguments.tars_of(options, options.tar, "corpus", "encode", rules), what)
    if options.parquet:
        return of_table(arguments.parquet_of(options, options.parquet, "corpus", "encode", rules), what)
    return None


def _run(options: argparse.Namespace) -> None:
    _check(options)
    from lexlip.encode.files import FolderImages, LineTexts
    from lexlip.encode.run import encode, process_of
    from lexlip.launch.environment import leave_with_launcher
    from lexlip.models.lexlip import LexLIP
    from lexlip.utils.devices import usable_device
    from lexlip_data.errors import DataError

    leave_with_launcher()
    device = usable_device(options.device)
    process = process_of()
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 or more")
    try:
        rules = Rules(options.max_bad_share, tuple(map(str, options.picture_roots)))
        corpus = table_of(options, options.what, rules)
        if corpus is None:
            corpus = FolderImages(options.images, options.picture_roots) if options.images else LineTexts(options.texts)
        for note in corpus.notes if process[0] == 0 else ():
            print(one_line(note), file=sys.stderr)
        model = LexLIP.from_pretrained(options.model, trust_sources=options.trust_sources).to(device)
        done = encode(
            model, corpus, options.out, top_k=options.top_k, batch_size=options.batch_size,
            shard_documents=options.shard_documents, workers=options.workers, rules=rules, process=process,
            progress=process[0] == 0 and sys.stderr.isatty(), model_name=options.model, id_prefix=options.id_prefix,
        )  # fmt: skip
    except DataError as error:
        raise UserError(str(error)) from error
    if not done.complete:
        print(f"process {process[0]} of {process[1]}: {done.encoded:,} {corpus.what}, others are at work")
        return
    counts = {"": done.skipped or 0, " rows or samples of the input": len(corpus.left_out)}
    left_out = " and ".join(f"{count:,}{what}" for what, count in counts.items() if count)
    skipped = f", {left_out} left out: {options.out}/skipped_samples.tsv" if left_out else ""
    print(f"{done.documents:,} {corpus.what} in {done.shards:,} shards, {done.encoded:,} encoded now{skipped}")


def _check(options: argparse.Namespace) -> None:
    """Before torch is loaded, which takes seconds."""
    given = [name for name in ("arrow", "tsv", "texts", "tar", "parquet") if getattr(options, name)]
    if options.images and given not in (["tsv"], ["parquet"]):
        given.append("images")
    if len(given) != 1:
        raise UserError(
            f"{' and '.join(f'--{name}' for name in given) or 'no corpus'}: give one of --arrow, --tsv, --tar, "
            "--parquet, --images and --texts (--images goes with --tsv and --parquet too)"
        )
    if options.picture_roots and given[0] in ("arrow", "texts", "tar"):
        raise UserError(f"--picture-roots: --{given[0]} reads no image from a file of its own")
    check_source("--model ", options.model)
    for file in options.arrow or ():
        check_input("--arrow", file)
    check_input("--tsv", options.tsv)
    check_input("--texts", options.texts)
    check_input("--images", options.images, folder=True)
    check_output("--out", options.out, folder=True)
