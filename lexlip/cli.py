"""The `lexlip` command: checkpoints, model folders, indexes. `lexlip --help` lists its parts; each room has its own."""

import argparse
import sys

from lexlip.errors import LaunchError, UserError
from lexlip_data.command import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: as `run_command`, and 1 for what a command found wrong."""
    return run_command(lambda: _run(arguments), (UserError, LaunchError))


def _run(arguments: list[str] | None) -> int:
    # Here rather than above, so that Ctrl-C while they load ends as it does later.
    import lexlip.convert.cli
    import lexlip.encode.cli
    import lexlip.evaluate.cli
    import lexlip.evaluate.long_text.cli
    import lexlip.features.cli
    import lexlip.fit.cli
    import lexlip.index.cli
    import lexlip.serve.cli

    parser = argparse.ArgumentParser("lexlip", description="Checkpoints, model folders and indexes of LexLIP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rooms = (lexlip.fit, lexlip.features, lexlip.encode, lexlip.index, lexlip.serve, lexlip.convert)
    for room in (*rooms, lexlip.evaluate, lexlip.evaluate.long_text):
        room.cli.add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
