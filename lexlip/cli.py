"""The `lexlip` command: checkpoints, model folders, indexes. `lexlip --help` lists its parts; each room has its own."""

import argparse
import sys
from importlib import import_module

from lexlip.errors import LaunchError, UserError
from lexlip_data.command import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: as `run_command`, and 1 for what a command found wrong."""
    return run_command(lambda: _run(arguments), (UserError, LaunchError))


# Whose commands they are. Only the room of the command that is given is loaded: a search is to be quick.
_ROOMS = {
    "fit": ("fit",), "cache": ("features",), "encode": ("encode",), "index": ("index",), "search": ("search",),
    "sync": ("sync",), "serve": ("serve",), "classify": ("classify",),
    "explain": ("explain",), "qrels": ("evaluate",), "evaluate": ("evaluate",), "eval-mteb": ("evaluate",),
}  # fmt: skip
_EVERY = (
    "fit", "features", "encode", "index", "search", "sync", "serve", "explain", "classify", "convert",
    "evaluate", "evaluate.long_text",
)  # fmt: skip


def _run(arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("lexlip", description="Checkpoints, model folders and indexes of LexLIP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in _ROOMS.get(given[0] if given else "", _EVERY):
        # Here rather than above, so that Ctrl-C while they load ends as it does later.
        import_module(f"lexlip.{room}.cli").add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
