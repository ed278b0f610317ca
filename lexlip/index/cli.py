"""The commands around an index: lexlip index build | add | delete | merge | info | verify | export, lexlip search."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lexlip.errors import DamagedIndex, IndexingError
from lexlip.index import run_files, writer
from lexlip.index.impacts import SCALES
from lexlip.index.index import Index, damage_of
from lexlip.index.lookup import TableModel, has_table
from lexlip.index.queries import bag_of
from lexlip.index.remembered import remembered
from lexlip.index.shards import read_shards
from lexlip.index.store import read_manifest
from lexlip.pretrained import tell_of
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input
from lexlip_data.command import prints_unicode


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `index` and `search` into the parser of the `lexlip` command."""
    _add_index(commands)
    _add_search(commands)


def _add_index(commands: argparse._SubParsersAction) -> None:
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


def _add_taking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--id-prefix", default="", metavar="TEXT", help="put before every id")
    parser.add_argument("--force", action="store_true", help="take vectors of another model than the others")


def _add_search(commands: argparse._SubParsersAction) -> None:
    search = commands.add_parser("search", help="search an index by a text, an image or a bag of words")
    search.add_argument("text", nargs="?", help="what to look for")
    search.add_argument("--index", type=Path, required=True)
    search.add_argument("--model", help="model folder, or a name on the hub (default: the one that made the index)")
    trust_option(search)
    search.add_argument("--image", type=Path, help="look for what is like this image")
    search.add_argument("--bag", help='words or term numbers, and weights: {"dog": 0.7}')
    search.add_argument("-k", type=int, default=10, help="how many documents to return (default: 10)")
    search.add_argument(
        "--drop", type=float, default=0.0,
        help="fraction of the largest possible score that terms left out may hold; 0 is exact (default: 0)",
    )  # fmt: skip
    search.add_argument("--explain", action="store_true", help="also what each shared term adds to a score")
    search.add_argument("--force", action="store_true", help="search with a model that did not make the vectors")
    search.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    run_files.add_options(search)
    search.set_defaults(run=_search)


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


def _search(options: argparse.Namespace) -> None:
    if run_files.is_wanted(options):
        _write_run(options)
        return
    given = [name for name in ("text", "image", "bag") if getattr(options, name) is not None]
    if len(given) != 1:
        raise IndexingError(f"a search takes one of a text, --image and --bag, not {' and '.join(given) or 'none'}")
    if options.k < 1:
        raise IndexingError(f"k={options.k}; it must be at least 1")
    check_input("--image", options.image)
    query = {"image": _image, "bag": _bag}[given[0]](options) if options.text is None else options.text
    named = not (isinstance(query, dict) and all(isinstance(term, int) for term in query))
    model = _model(options, given[0]) if named or options.model else None
    index = Index.open(options.index, model, options.trust_sources, force=options.force)
    bag = bag_of(query, index.model)  # once: encoding takes longer than all the rest
    results = []
    for hit in index.search(bag, options.k, drop=options.drop):
        result: dict[str, Any] = {"id": hit.id, "score": hit.score}
        if options.explain:
            result["terms"] = [share._asdict() for share in index.explain(bag, hit.id)]
        results.append(result)
    if options.json:
        _print(results)
        return
    for result in results:
        print(f"{result['score']:.6f}  {result['id']}")
        for share in result.get("terms", ()):
            name = share["word"] if share["word"] is not None else share["term"]
            print(f"    {share['score']:.6f} = {share['query']:.4f} x {share['document']:.4f}  {name}")


def _write_run(options: argparse.Namespace) -> None:
    model = _model(options, "text") if options.queries is not None or options.model else None
    index = Index.open(options.index, model, options.trust_sources, force=options.force)
    queries = run_files.queries_of(options, index.model)
    count = run_files.write_run(index, queries, options.out, options.k, options.run_name, drop=options.drop)
    print(f"{count:,} queries, {options.k:,} documents each at most -> {options.out}")


def _model(options: argparse.Namespace, what: str) -> str | TableModel:
    """The model that is named, or else the one that made the index; of its text side alone where that does."""
    name = options.model or remembered(options.index, options.trust_sources)  # reads the manifest: a quick refusal
    from lexlip.models.source import check_source

    folder = check_source("--model ", name)
    if folder is not None and what != "image" and has_table(folder):
        tell_of(folder)
        return TableModel(folder)
    return name


def _image(options: argparse.Namespace):
    from lexlip_data.errors import BrokenImage
    from lexlip_data.sources.images import open_image

    try:
        return open_image(options.image.read_bytes())
    except (OSError, BrokenImage) as error:
        raise IndexingError(f"{options.image} is no image that can be read: {error}") from error


def _bag(options: argparse.Namespace) -> dict:
    try:
        bag = json.loads(options.bag)
    except ValueError as error:
        raise IndexingError(f"--bag is no JSON: {error}") from error
    numbers = isinstance(bag, dict) and all(isinstance(weight, (int, float)) for weight in bag.values())
    if not numbers:
        raise IndexingError('--bag must map terms to weights, such as {"2482": 0.7}')
    return {int(term): weight for term, weight in bag.items()} if all(map(str.isdecimal, bag)) else bag


def _rows(options: argparse.Namespace) -> Iterator:
    """Rows of all shards, with a line on the terminal that counts them."""
    from tqdm import tqdm

    with tqdm(unit=" documents", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for rows in read_shards(options.shards, options.id_prefix):
            yield rows
            bar.update(len(rows))


def _print(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=not prints_unicode()))
