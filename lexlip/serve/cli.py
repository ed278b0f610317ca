"""lexlip serve: the command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lexlip.errors import UserError
from lexlip.index.origin import require_model
from lexlip.index.places import Place, place_of
from lexlip.index.remembered import remembered
from lexlip.models.source import check_source
from lexlip.utils.options import engine_options, trust_option
from lexlip.utils.paths import check_input


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `serve` into the parser of the `lexlip` command."""
    # Limits that are not given are left out, so that their defaults stand in `Limits` alone.
    serve = commands.add_parser(
        "serve", help="a page and answers to searches over HTTP; docs/SERVING.md", argument_default=argparse.SUPPRESS
    )
    serve.add_argument("--index", type=Path, default=None, help="folder; new states are picked up while serving")
    engine_options(serve)
    serve.add_argument(
        "--model", default=None, help="model folder, or a name on the hub (default: the one that made the index)"
    )
    serve.add_argument(
        "--force", action="store_true", default=False, help="take a model that did not make the index's vectors"
    )
    trust_option(serve)
    serve.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="host name or address that clients use, besides localhost; may be repeated; * allows all",
    )  # fmt: skip
    serve.add_argument("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)")
    serve.add_argument(
        "--photos", type=Path, metavar="DIR", default=None,
        help="where the photos lie, ids being paths in it (default: the folders that the index remembers)",
    )  # fmt: skip
    serve.add_argument("--no-page", action="store_true", default=False, help="answer programs alone: no page at /")
    serve.add_argument(
        "--cache", type=Path, metavar="DIR", default=None, help="for thumbnails (default: in the user's cache folder)"
    )
    serve.add_argument(
        "--cache-bytes", type=int, default=1 << 30, help="of thumbnails that are kept; 0: none (default: 1 GiB)"
    )
    serve.add_argument("--max-file", type=int, help="bytes of a photo that is shown (default: 64 MiB)")
    serve.add_argument("--max-body", type=int, help="bytes of a request (default: 16 MiB)")
    serve.add_argument("--max-pixels", type=int, help="of an image (default: 67,108,864)")
    serve.add_argument("--max-k", type=int, help="results of a request (default: 1000)")
    serve.add_argument("--concurrency", type=int, help="requests of each kind at once; more get 503 (default: 64)")
    serve.add_argument("--head-seconds", type=float, help="for a head to arrive (default: 10)")
    serve.add_argument("--body-seconds", type=float, help="for a body to arrive (default: 10)")
    serve.add_argument("--reload-seconds", type=float, help="between looks at the index (default: 1)")
    serve.add_argument("--threads", type=int, help="that search (default: all processors)")
    serve.add_argument("--decoders", type=int, help="processes that decode images (default: 1)")
    serve.add_argument("--decode-seconds", type=float, help="for an image to be decoded (default: 5)")
    serve.add_argument("--decode-memory", type=int, help="bytes for an image to be decoded (default: 2 GiB)")
    serve.add_argument("--access-log", action="store_true", default=False, help="log a line for each request")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> None:
    if not 0 <= options.port < 1 << 16:
        raise UserError(f"--port {options.port}: 0 to 65535")
    check_input("--index", options.index, folder=True)
    check_input("--photos", options.photos, folder=True)
    if options.cache_bytes < 0:
        raise UserError(f"--cache-bytes {options.cache_bytes}: 0 or more")
    place = place_of(options)
    if place is None:
        raise UserError("give --index, or --engine and --uri for documents that were pushed to an engine")
    options.model = options.model or remembered(place, options.trust_sources)
    check_source("--model ", options.model)
    try:
        from lexlip.serve.app import create_app
        from lexlip.serve.hosts import EVERY, checked_names, is_loopback
        from lexlip.serve.server import run
        from lexlip.serve.thumbnails import ThumbnailCache, default_folder
    except ImportError as error:
        raise UserError(f"lexlip serve needs the extra: pip install -e '.[serve]' ({error})") from error
    from lexlip.models.lexlip import LexLIP
    from lexlip.serve.limits import Limits
    from lexlip.utils.devices import usable_device

    limits = Limits(**{name: value for name, value in vars(options).items() if name in Limits.__dataclass_fields__})
    hosts = checked_names([*options.allow_host, *([] if options.host in EVERY else [options.host])])
    if not options.allow_host and not is_loopback(options.host):
        names = " or ".join(["localhost", *hosts])
        print(
            f"--host {options.host}: only requests to {names} are answered; --allow-host NAME adds a name or address "
            "that clients use", file=sys.stderr,
        )  # fmt: skip
    device = usable_device(options.device)
    model = LexLIP.from_pretrained(options.model, trust_sources=options.trust_sources).to(device)
    if not options.force:  # here its name is known
        manifest = place.manifest()
        sources = () if options.index is None else manifest.sources
        require_model(place, manifest.model, model, options.model, sources)
    cache = ThumbnailCache(options.cache or default_folder(), options.cache_bytes) if options.cache_bytes else None
    photos = _photos(options, place, is_loopback(options.host))
    app = create_app(place, model, limits, hosts, True, not options.no_page, photos, cache)
    run(app, options.host, options.port, limits.head_seconds, access_log=options.access_log)


def _photos(options: argparse.Namespace, place: Place, private: bool) -> Path | bool:
    """The folder of the photos, or whether those that the index remembers are shown.

    An index may be somebody else's, and name any folder: what it remembers is shown on this machine alone.
    """
    if options.photos is not None or private or options.no_page:
        return options.photos or private
    if any(source.what == "images" for source in place.manifest().sources):
        print(f"--host {options.host}: others can see this page, so photos need --photos DIR", file=sys.stderr)
    return False
