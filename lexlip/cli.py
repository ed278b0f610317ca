"""The `lexlip` command: checkpoints, model folders, indexes. `lexlip --help` lists its parts; each room has its own."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from lexlip.errors import LaunchError, UserError
from lexlip_data.command import run_command

ROOMS = ("convert", "encode", "index", "serve", "evaluate.long_text")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: as `run_command`, and 1 for what a command found wrong."""
    return run_command(lambda: _run(arguments), (UserError, LaunchError))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser("lexlip", description="Checkpoints, model folders and indexes of LexLIP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in ROOMS:
        import_module(f"lexlip.{room}.cli").add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
