"""Options that several commands take. Needs no torch."""

from __future__ import annotations

import argparse


def trust_option(command: argparse.ArgumentParser) -> None:
    """Add --trust-sources to a command that opens a model."""
    command.add_argument(
        "--trust-sources", action="store_true", default=False,
        help="also follow a name in the model's file that leads to the hub or to another folder",
    )  # fmt: skip
