"""lexlip sync: an index that follows a folder of photos."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lexlip.errors import IndexBusy, UserError
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input, check_output
from lexlip_data.errors import DataError, one_line

if TYPE_CHECKING:
    from lexlip.sync.run import Synced

_LISTED = 20  # broken files that are told one by one


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `sync` into the parser of the `lexlip` command."""
    command = commands.add_parser("sync", help="make an index follow a folder of photos; docs/SEARCH.md")
    command.add_argument("photos", type=Path, help="the folder")
    command.add_argument(
        "--index", type=Path, help="its folder, made if need be (default: with the user's data, one for each folder)"
    )
    command.add_argument(
        "--model", help="model folder, or a name on the hub (default: the one that made the index, or photos-small)"
    )
    trust_option(command)
    command.add_argument(
        "--id-prefix", metavar="TEXT",
        help="put before every id (default: nothing for the first folder of an index, its name and / for others)",
    )  # fmt: skip
    command.add_argument("--top-k", type=int, metavar="K", help="keep the K heaviest terms of each (default: all)")
    command.add_argument(
        "--video-seconds", type=float, metavar="N",
        help="of videos, a moment every N seconds; 0 leaves them out (default: 10 where PyAV is installed)",
    )  # fmt: skip
    command.add_argument(
        "--video-whole", action="store_true", default=None,
        help="a video is one document, the maximum over its moments (default: a document each)",
    )  # fmt: skip
    command.add_argument("--rebuild", action="store_true", help="replace the index, whatever made it")
    command.add_argument("--empty", action="store_true", help="go on where none of many photos is there any more")
    command.add_argument("--watch", action="store_true", help="go on, and look for changes again and again")
    command.add_argument("--every", type=float, default=5.0, help="with --watch: seconds between looks (default: 5)")
    command.add_argument("--batch", type=int, default=256, help="files of a publication (default: 256)")
    command.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once (default: 64)")
    command.add_argument("--workers", type=int, default=0, help="processes that decode images (default: none)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    command.add_argument("--json", action="store_true", help="what was done as JSON, every broken file in it")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    check_input("PHOTOS", options.photos, folder=True)
    for name, least in (("batch", 1), ("batch_size", 1), ("workers", 0), ("every", 0.1), ("top_k", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value}: at least {least}")
    done = sync_folder(options)
    report(options.photos, done, options.json)
    told = ""
    while options.watch:
        time.sleep(options.every)
        try:
            done = sync_folder(options, again=True)
        except IndexBusy:  # another writer; the next look finds what is left
            continue
        except (UserError, DataError, OSError) as error:  # a disk may be away for a while: told once
            if str(error) != told:
                print(f"{one_line(error)}; looking again every {options.every:g} s", file=sys.stderr, flush=True)
            told = str(error)
            continue
        told = ""
        if done.changes:
            report(options.photos, done, options.json)


def sync_photos(photos: Path, **given: object) -> argparse.Namespace:
    """`lexlip sync PHOTOS` with some options, for other commands; what is new or broken is told on standard error.

    Returns:
        The options, of which `index` says where the index is.
    """
    from lexlip.index.store import MANIFEST

    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    options = parser.parse_args(["sync", "--", str(photos)])
    vars(options).update(given)
    check_input("--photos", photos, folder=True)
    try:
        done = sync_folder(options)
    except IndexBusy as error:
        if not (options.index / MANIFEST).exists():
            raise
        print(f"{one_line(error)}; searching it as it is", file=sys.stderr)
        return options
    if done.changes:
        with redirect_stdout(sys.stderr):
            report(photos, done)
    return options


def sync_folder(options: argparse.Namespace, again: bool = False) -> Synced:
    """One sync, with a bar on a terminal; the model stays loaded in `options` from one to the next."""
    from tqdm import tqdm

    from lexlip.sync.encoder import ModelEncoder, model_of
    from lexlip.sync.places import index_of
    from lexlip.sync.run import EVERY, Settings, sync

    if options.video_seconds is not None and not (options.video_seconds == 0 or 0.1 <= options.video_seconds <= 1e6):
        raise UserError(f"--video-seconds {options.video_seconds}: 0, or 0.1 or more (the default is {EVERY:.0f})")
    options.index = options.index or index_of(options.photos)
    check_output("--index", options.index, folder=True)
    if not again:
        name = model_of(options.photos, options.index, options.model, options.trust_sources, options.rebuild)
        options.encoder = ModelEncoder(
            options.photos, options.index, name, options.rebuild, batch_size=options.batch_size,
            workers=options.workers, device=options.device, trust_sources=options.trust_sources,
        )  # fmt: skip
        if options.model is not None:
            options.encoder.check()
    settings = Settings(options.id_prefix, options.top_k, options.video_seconds, options.video_whole)
    bar = tqdm(unit=" photos", disable=None if not again else True, leave=False)

    def progress(done: int, all: int) -> None:
        bar.total = all
        bar.update(done - bar.n)

    with bar:
        return sync(
            options.photos, options.index, options.encoder, settings, batch=options.batch,
            rebuild=options.rebuild and not again, may_be_empty=options.empty, progress=progress,
        )  # fmt: skip


def report(photos: Path, done: Synced, as_json: bool = False) -> None:
    """What a sync did, on the terminal."""
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    for note in done.notes:
        print(one_line(note), file=sys.stderr)
    for name, why in list(done.broken.items())[:_LISTED]:
        print(f"{one_line(photos / name)}: {one_line(why)}", file=sys.stderr)
    if len(done.broken) > _LISTED:
        print(f"and {len(done.broken) - _LISTED:,} more that cannot be used; --json lists all", file=sys.stderr)
    counts = [
        f"{count:,} {what}" for what in ("added", "changed", "renamed", "deleted", "unchanged")
        if (count := getattr(done, what))
    ]  # fmt: skip
    speed = f", {done.encoded / done.seconds:,.1f} photos/s" if done.encoded and done.seconds else ""
    broken = f", {len(done.broken):,} cannot be used" if done.broken else ""
    print(f"{one_line(photos)}: {', '.join(counts) or 'no photos'}{broken}; {done.documents:,} in the index{speed}")
