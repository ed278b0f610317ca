"""lexlip cache: photos and captions through frozen towers, once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexlip.errors import UserError

if TYPE_CHECKING:
    from lexlip.features.write import Cached


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `cache` into the parser of the `lexlip` command."""
    command = commands.add_parser("cache", help="what frozen towers see of photos and captions, kept for training")
    data_options(command)
    command.add_argument("--out", type=Path, required=True, help="folder; the same command goes on there")
    command.add_argument("--verify", action="store_true", help="only compare the shards in --out with their checksums")
    command.set_defaults(run=_run)


def data_options(command: argparse.ArgumentParser) -> None:
    """What is read, through which towers, and how."""
    command.add_argument(
        "--data", nargs="+", metavar="FILE", help="tables (title, filepath, optionally image_id and split), Karpathy's "
        "JSON, Arrow files; with --data-root also names of data sets",
    )  # fmt: skip
    command.add_argument("--val", type=Path, metavar="FILE", help="the same, of the validation split")
    command.add_argument("--test", type=Path, metavar="FILE", help="the same, of the test split")
    command.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE",
        help="of the photos, that become the validation split where there is none; 0: none (default: 0.1)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    command.add_argument("--data-root", type=Path, metavar="DIR", help="folder of the data sets that --data names")
    command.add_argument("--images", type=Path, metavar="DIR", help="what file paths start from (default: the table)")
    roots = "folders besides the table's own that photos may lie in"
    command.add_argument("--picture-roots", nargs="+", default=(), metavar="DIR", help=roots)
    command.add_argument("--image", nargs="+", metavar="TOWER", help="image towers, side by side; see docs/FROZEN.md")
    command.add_argument("--text", metavar="TOWER", help="text tower")
    command.add_argument(
        "--lexicon", metavar="NAME", help="tokenizer whose word pieces are the terms, if not the tower's"
    )
    command.add_argument("--batch-size", type=int, default=64, help="photos or captions at once (default: 64)")
    command.add_argument("--shard-rows", type=int, default=4096, help="photos or captions per shard (default: 4096)")
    command.add_argument("--workers", type=int, default=0, help="processes that decode photos (default: none)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU for each process where there is one)")
    command.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="of photos and captions that may be unreadable (default: 0.01)",
    )


def _run(options: argparse.Namespace) -> int:
    if options.verify:
        return _verify(options.out)
    for name in ("data", "image", "text"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; only --verify needs no more than --out")
    write_cache(options, options.out)
    return 0


def _verify(folder: Path) -> int:
    from lexlip.features.store import FeatureStore

    store = FeatureStore(folder)
    wrong = store.damaged()
    for line in wrong:
        print(line)
    shards = sum(len(list(store.paths(split, kind))) for split in store.splits for kind in ("images", "texts"))
    print(f"{shards - len(wrong):,} of {shards:,} shards are what was written")
    return 1 if wrong else 0


def write_cache(
    options: argparse.Namespace, folder: Path, before: Callable[[dict[str, Any], Any, Any], object] | None = None
) -> Cached:
    """What `data_options` ask for, into a folder; says what it will cost and what is there now.

    Args:
        before: called before anything is written, with the data by split, the image tower and the text tower.
    """
    from lexlip.encode.run import process_of
    from lexlip.features.data import read_data
    from lexlip.features.vocabulary import write_vocabulary
    from lexlip.features.write import write_features
    from lexlip.launch.environment import leave_with_launcher
    from lexlip.models.tokenizer import load_tokenizer
    from lexlip.models.towers import load_image_tower, load_text_tower
    from lexlip.utils.devices import usable_device
    from lexlip_data.errors import DataError
    from lexlip_data.sources.skipped import Rules

    leave_with_launcher()
    process = process_of()
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 or more")
    try:
        rules = Rules(options.max_bad_share, options.picture_roots)
        data = read_data(
            options.data, options.val, options.test, held_out=options.held_out, seed=options.seed,
            data_root=options.data_root, images=options.images, rules=rules,
        )  # fmt: skip
        device = usable_device(options.device)
        lexicon = load_tokenizer(options.lexicon) if options.lexicon else None
        image: Any = load_image_tower(options.image)
        text: Any = load_text_tower(options.text, lexicon)
        if before is not None and process[0] == 0:
            before(data, image, text)
        done = write_features(
            folder, image.to(device), text.to(device), data,
            batch_size=options.batch_size, shard_rows=options.shard_rows, workers=options.workers, rules=rules,
            process=process, progress=process[0] == 0 and sys.stderr.isatty(),
            tell=(lambda line: print(line, flush=True)) if process[0] == 0 else None,
        )  # fmt: skip
        if process[0] == 0:
            write_vocabulary(folder, text, progress=sys.stderr.isatty())
    except DataError as error:
        raise UserError(str(error)) from error
    if not done.complete:
        print(f"process {process[0]} of {process[1]}: {done.written:,} rows, others are at work")
        return done
    left_out = f", {done.skipped:,} left out: {folder}/*/skipped_samples.tsv" if done.skipped else ""
    splits = ", ".join(f"{name} {len(pairs):,}" for name, pairs in data.items())
    speed = f", {done.photos_per_second:,.1f} photos/s" if done.photos_per_second else ""
    print(
        f"{done.photos:,} photos ({splits}) and {done.captions:,} captions, {done.written:,} rows now{speed}{left_out}"
    )
    return done
