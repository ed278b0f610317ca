"""The `lexlip` command: checkpoints, model folders, indexes. `lexlip --help` lists its parts; each room has its own."""

import argparse
import sys

import lexlip.convert.cli
import lexlip.encode.cli
import lexlip.evaluate.long_text.cli
import lexlip.features.cli
import lexlip.fit.cli
import lexlip.index.cli
import lexlip.serve.cli
from lexlip.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a mistake told in one line, 1 for what a command found wrong."""
    parser = argparse.ArgumentParser("lexlip", description="Checkpoints, model folders and indexes of LexLIP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rooms = (lexlip.fit, lexlip.features, lexlip.encode, lexlip.index, lexlip.serve, lexlip.convert)
    for room in (*rooms, lexlip.evaluate.long_text):
        room.cli.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
