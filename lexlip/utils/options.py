"""Options that several commands take. Needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def trust_option(command: argparse.ArgumentParser) -> None:
    """Add --trust-sources to a command that opens a model."""
    command.add_argument(
        "--trust-sources", action="store_true", default=False,
        help="also follow a name in the model's file that leads to the hub or to another folder",
    )  # fmt: skip


ENGINES = ("milvus", "qdrant", "opensearch", "elasticsearch")


def engine_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """--engine, --uri, --collection and --credentials, as `lexlip.index.places` reads them."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=None, required=required, help="that holds the documents; docs/SCALING.md"
    )
    parser.add_argument("--uri", default=None, required=required, help="its address, such as http://localhost:6333")
    parser.add_argument("--collection", default=None, metavar="NAME", help="its name there (default: lexlip)")
    parser.add_argument(
        "--credentials", type=Path, default=None, metavar="FILE",
        help="JSON with user and password, or api_key, and ca_certs (default: the variables LEXLIP_ENGINE_...)",
    )  # fmt: skip
