"""lexlip search: by a text, words, an image or a bag of words. Loads no torch where words or a table will do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexlip.errors import IndexingError
from lexlip.search import many
from lexlip.utils.images import image_of_file
from lexlip.utils.options import engine_options, trust_option
from lexlip.utils.paths import check_input, check_output
from lexlip_data.errors import one_line

if TYPE_CHECKING:
    from lexlip.index import Hit
    from lexlip.index.places import Searchable
    from lexlip.index.query_words import WordQuery

_LONGEST = 5_000  # characters of an id that is printed: more than a path has
SYNTAX = """words in TEXT: -cat leaves out photos that have the word (-cat:0.05: above this weight), +beach wants it,
dog^2 and dog^0.5 weigh it, dog^-1 is a penalty, "-5 degrees" in quotes is plain text; docs/SEARCH.md"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `search` into the parser of the `lexlip` command."""
    search = commands.add_parser("search", help="search an index by a text, an image or a bag of words", epilog=SYNTAX)
    search.add_argument("text", nargs="?", help="what to look for")
    search.add_argument("--index", type=Path, help="its folder (default: the one of --photos)")
    engine_options(search)
    search.add_argument("--photos", type=Path, metavar="DIR", help="first sync the index with this folder")
    search.add_argument("--model", help="model folder, or a name on the hub (default: the one that made the index)")
    trust_option(search)
    search.add_argument("--image", type=Path, help="look for what is like this image")
    search.add_argument("--bag", help='words or term numbers, and weights: {"dog": 0.7}')
    search.add_argument("--plain", action="store_true", help="no sign in the text means anything")
    search.add_argument("-k", type=int, default=10, help="how many documents to return (default: 10)")
    search.add_argument(
        "--drop", type=float, default=0.0,
        help="fraction of the largest possible score that terms left out may hold; 0 is exact (default: 0)",
    )  # fmt: skip
    search.add_argument("--min-score", type=float, metavar="X", help="leave out lower scores")
    search.add_argument(
        "--filter", action="append", default=[], metavar="path:PATTERN",
        help="only ids like this, such as path:2024/* or name:IMG_*; not:path:... the others; may be repeated",
    )  # fmt: skip
    search.add_argument("--dense", type=Path, metavar="FOLDER", help="dense vectors of the same documents")
    search.add_argument(
        "--fusion", choices=("rrf", "wsum", "rerank"), default="rrf",
        help="with --dense: reciprocal ranks, weighted scores, or the dense order of the best 200 (default: rrf)",
    )  # fmt: skip
    search.add_argument("--dense-query", type=Path, metavar="FILE", help="its vector, .npy (default: by its model)")
    search.add_argument("--explain", action="store_true", help="also what each shared term adds to a score")
    search.add_argument("--force", action="store_true", help="search with a model that did not make the vectors")
    search.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    search.add_argument("--open", action="store_true", help="show the best photo, or the contact sheet, in its program")
    search.add_argument("--contact-sheet", type=Path, metavar="FILE", help="write the results as one image")
    search.add_argument(
        "--thumbnails", choices=("auto", "never"), default="auto",
        help="in terminals that can show them: kitty, iTerm2, sixel (default: auto)",
    )  # fmt: skip
    many.add_options(search)
    search.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if options.k < 1:
        raise IndexingError(f"k={options.k}; it must be at least 1")
    if many.is_wanted(options):
        many.write(options)
        return
    given = [name for name in ("text", "image", "bag") if getattr(options, name) is not None]
    if len(given) != 1:
        raise IndexingError(f"a search takes one of a text, --image and --bag, not {' and '.join(given) or 'none'}")
    if options.index is None and options.photos is None and options.engine is None:
        raise IndexingError("give --index, --photos for a folder of photos, or --engine and --uri")
    if options.photos is not None and options.engine is not None:
        raise IndexingError("--photos syncs an index in a folder, --engine searches elsewhere: one of them")
    check_input("--image", options.image)
    check_output("--contact-sheet", options.contact_sheet)
    ids = _filter(options.filter)
    words = None
    if options.text is not None and not options.plain:
        from lexlip.index.query_words import parse_query

        words = parse_query(options.text)  # before anything is opened
    if options.photos is not None:
        from lexlip.sync.cli import sync_photos

        done = sync_photos(
            options.photos, index=options.index, model=options.model, trust_sources=options.trust_sources
        )  # fmt: skip
        options.index = done.index
    index, query, conditions = _opened(options, given[0], words)
    options.dense_text = (words.text or " ".join(words.weights)) if words else options.text
    hits = _hits(options, index, query, conditions, ids)
    _tell(options, index, query, hits)


def _opened(options: argparse.Namespace, what: str, words: WordQuery | None) -> tuple[Searchable, Any, dict[str, Any]]:
    """The index, the query's bag, and what else is asked of results."""
    from lexlip.index.places import place_of
    from lexlip.index.queries import bag_of
    from lexlip.index.query_words import resolve
    from lexlip.search.models import model_for

    query: Any = options.text
    if what != "text":
        query = image_of_file(options.image) if what == "image" else _bag(options)
    named = not (isinstance(query, dict) and all(isinstance(term, int) for term in query))
    no_text = what == "bag" or (words is not None and not words.text and bool(words.weights))
    model: Any
    place = place_of(options)
    assert place is not None
    model, sure = model_for(options, place, what, no_text) if named or options.model else (None, False)
    index = place.open(model, options.trust_sources, force=options.force or sure)
    if words is None:
        return index, bag_of(query, index.model), {}  # once: encoding takes longer than all the rest
    assert index.model is not None
    resolved = resolve(words, index.model)
    return index, resolved.bag, resolved.conditions


def _hits(
    options: argparse.Namespace, index: Searchable, query: Any, conditions: dict[str, Any], ids: Any
) -> list[Hit]:
    if options.dense is None:
        hits = index.search(query, options.k, drop=options.drop, ids=ids, **conditions)
    else:
        from lexlip.search.dense import fused_hits

        hits = fused_hits(index, query, options, ids, {"drop": options.drop, **conditions})
    return [hit for hit in hits if options.min_score is None or hit.score >= options.min_score]


def _filter(patterns: list[str]):
    """What ids must be like; None for any.

    Raises:
        IndexingError: a pattern of another form.
    """
    if not patterns:
        return None
    from fnmatch import translate
    from re import compile

    tests = []
    for pattern in patterns:
        wanted = not pattern.startswith("not:")
        field, _, form = pattern.removeprefix("not:").partition(":")
        if field not in ("path", "name") or not form:
            raise IndexingError(f"--filter {pattern}: path:PATTERN or name:PATTERN, such as path:2024/*")
        tests.append((wanted, field, compile(translate(form)).fullmatch))

    def fits(id: int | str) -> bool:
        path = str(id)
        parts = {"path": path, "name": path.rpartition("/")[2]}
        return all((matches(parts[field]) is not None) == wanted for wanted, field, matches in tests)

    return fits


def _tell(options: argparse.Namespace, index: Searchable, query: Any, hits: list[Hit]) -> None:
    results = []
    for hit in hits:
        result: dict[str, Any] = {"id": hit.id, "score": hit.score}
        if options.explain:
            result["terms"] = [share._asdict() for share in index.explain(query, hit.id)]
        results.append(result)
    if options.json:
        from lexlip_data.command import prints_unicode

        print(json.dumps(results, indent=2, ensure_ascii=not prints_unicode()))
    show = None
    if not options.json and options.thumbnails == "auto":
        from lexlip.search.terminal import image_protocol

        show = image_protocol()
    for result in results if not options.json else ():
        print(f"{result['score']:.6f}  {one_line(result['id'], _LONGEST)}")
        if show is not None:
            from lexlip.search.pictures import thumbnail
            from lexlip.sync.photos import PhotoRoots

            show(thumbnail(PhotoRoots(index.manifest.sources), result["id"]))
        for share in result.get("terms", ()):
            name = share["word"] if share["word"] is not None else share["term"]
            print(f"    {share['score']:.6f} = {share['query']:.4f} x {share['document']:.4f}  {one_line(name)}")
    if options.contact_sheet is not None:
        from lexlip.search.pictures import contact_sheet

        contact_sheet(index, hits, options.contact_sheet)
    if options.open:
        from lexlip.search.pictures import open_in_program

        open_in_program(index, hits, options.contact_sheet)


def _bag(options: argparse.Namespace) -> dict:
    try:
        bag = json.loads(options.bag)
    except (ValueError, RecursionError) as error:
        raise IndexingError(f"--bag is no JSON: {error}") from error
    if not isinstance(bag, dict) or not all(isinstance(weight, (int, float)) for weight in bag.values()):
        raise IndexingError('--bag must map terms to weights, such as {"2482": 0.7}')
    return {int(term): weight for term, weight in bag.items()} if all(map(str.isdecimal, bag)) else bag
