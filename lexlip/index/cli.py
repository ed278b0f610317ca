"""The commands around an index: lexlip index build | add | delete | merge | info | verify | export | push."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import writer
from lexlip.index.impacts import SCALES
from lexlip.index.index import Index, damage_of
from lexlip.index.shards import read_shards
from lexlip.index.store import read_manifest
from lexlip.utils.options import engine_options
from lexlip_data.command import prints_unicode


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `index` into the parser of the `lexlip` command."""
    index = commands.add_parser("index", help="build, change and check an index of lexicon vectors")
    actions = index.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run, help: str, index_help: str | None = None) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help)
        parser.add_argument("index", type=Path, help=index_help)
        parser.set_defaults(run=run)
        return parser

    build = action("build", _build, "build an index from Arrow shards of vectors", "a new or an empty folder")
    build.add_argument("shards", type=Path, nargs="+", help="Arrow files (id, terms, weights), or folders of them")
    build.add_argument(
        "--impact-bits", type=int, default=writer.IMPACT_BITS, help="bits of a stored weight, 1 to 12 (default: 9)"
    )
    build.add_argument(
        "--impact-scale", choices=SCALES, default=writer.IMPACT_SCALE,
        help="where the stored weights lie: where results need them, or evenly (default: fitted)",
    )  # fmt: skip
    build.add_argument(
        "--segment-documents", type=int, default=writer.SEGMENT_DOCUMENTS,
        help="documents per segment at most (default: 4,194,304)",
    )  # fmt: skip
    _add_taking(build)
    build.add_argument("--overwrite", action="store_true", help="replace an index that is there")

    add = action("add", _add, "add documents; one whose id the index holds replaces the old one")
    add.add_argument("shards", type=Path, nargs="+")
    _add_taking(add)

    delete = action("delete", _delete, "delete documents by their ids; unknown ids are ignored")
    delete.add_argument("ids", nargs="*", help="ids")
    delete.add_argument("--from", dest="file", type=Path, help="a file with one id per line")

    action(
        "merge", lambda options: _print(asdict(writer.merge(options.index))), "merge segments and drop what is deleted"
    )
    action("info", lambda options: _print(Index.open(options.index).info()), "numbers of an index, as JSON")
    action("verify", _verify, "read every byte and compare checksums; exit status 1 if something is damaged")

    export = action("export", _export, "write it as files that other engines load")
    export.add_argument("--format", required=True, choices=("opensearch", "elasticsearch", "anserini", "ciff"))
    export.add_argument("--out", type=Path, required=True, help="a new or an empty folder")
    export.add_argument("--scale", type=int, default=100, help="anserini, ciff: weights x this, rounded (default: 100)")
    export.add_argument(
        "--rounded", action="store_true",
        help="opensearch, elasticsearch: weights to 9 bits, one feature a term instead of two",
    )  # fmt: skip

    push = action("push", _push, "bring an engine elsewhere to its state; docs/SCALING.md")
    engine_options(push, required=True)
    push.add_argument("--shards", type=int, help="parts of a new collection there (default: the engine's)")
    push.add_argument("--workers", type=int, default=4, help="requests at once (default: 4)")
    push.add_argument("--overwrite", action="store_true", help="remove what was pushed there before, and start anew")


def _add_taking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--id-prefix", default="", metavar="TEXT", help="put before every id")
    parser.add_argument("--force", action="store_true", help="take vectors of another model than the others")


def _build(options: argparse.Namespace) -> None:
    change = writer.build(
        options.index, _rows(options), impact_bits=options.impact_bits, impact_scale=options.impact_scale,
        segment_documents=options.segment_documents, overwrite=options.overwrite, force=options.force,
    )  # fmt: skip
    _print(asdict(change))


def _add(options: argparse.Namespace) -> None:
    _print(asdict(writer.add(options.index, _rows(options), force=options.force)))


def _delete(options: argparse.Namespace) -> None:
    ids: list = list(options.ids)
    if options.file is not None:
        try:
            # By line ends alone: `splitlines` also splits at characters that ids may hold.
            ids += [line.removesuffix("\r") for line in options.file.read_text(encoding="utf-8-sig").split("\n")]
            ids = ids[:-1] if ids and not ids[-1] else ids
        except (OSError, UnicodeDecodeError) as error:
            raise IndexingError(f"{options.file} cannot be read as text: {error}") from error
    if read_manifest(options.index).settings.ids == "int":
        try:
            ids = [int(id) for id in ids]
        except ValueError as error:
            raise IndexingError(f"the ids of {options.index} are whole numbers: {error}") from error
    _print(asdict(writer.delete(options.index, ids)))


def _verify(options: argparse.Namespace) -> int:
    try:
        index = Index.open(options.index)
        damage = index.verify()
        print("\n".join(damage) or f"{options.index}: {len(index):,} documents, every checksum is right")
    except DamagedIndex as error:
        damage = damage_of(options.index) or [str(error)]
        print("\n".join(damage))
    return 1 if damage else 0


def _export(options: argparse.Namespace) -> None:
    from lexlip.index.export import export

    count = export(Index.open(options.index), options.format, options.out, options.scale, options.rounded)
    print(f"{options.index}: {count:,} documents -> {options.out}")


def _push(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from lexlip.index.places import server_of
    from lexlip.index.remote.calls import PUSHING
    from lexlip.index.remote.push import push

    index = Index.open(options.index)
    collection = server_of(options).collection(PUSHING)
    try:
        with tqdm(total=len(index), unit=" documents", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            done = push(
                index, collection, shards=options.shards, workers=options.workers, overwrite=options.overwrite,
                progress=bar.update,
            )  # fmt: skip
    finally:
        collection.close()
    _print(asdict(done))


def _rows(options: argparse.Namespace) -> Iterator:
    """Rows of all shards, with a line on the terminal that counts them."""
    from tqdm import tqdm

    with tqdm(unit=" documents", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for rows in read_shards(options.shards, options.id_prefix):
            yield rows
            bar.update(len(rows))


def _print(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=not prints_unicode()))
