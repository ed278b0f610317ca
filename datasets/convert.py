"""Captioned images in any of the usual layouts -> Arrow files for training; the commands: `lexlip_data.convert.cli`."""

import sys
from pathlib import Path

try:
    import lexlip_data  # noqa: F401
except ImportError:  # run by path in a checkout that is not installed; the worker processes inherit the path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from lexlip_data.command import run_command


def main(command: list[str] | None = None) -> int:
    """Do what a command line says; returns the exit status: 2 for a mistake, 1 for what `check` found wrong."""
    return run_command(lambda: _run(command), stopped="stopped; the same command goes on with the shard it was at")


def _run(command: list[str] | None) -> int:
    from lexlip_data.convert.cli import run  # here, so that Ctrl-C while it loads ends as it does later

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
