"""Phase 2's command line: python run.py with task_... key=value ..."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if (ROOT / "datasets" / "lexlip_data").is_dir():  # a plain checkout runs without installation
    sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip_data.command import run_command  # noqa: E402


def main() -> int:
    """Run what the command line says; returns the exit status."""
    from lexlip.train.main import command_line, make_experiment
    from Phase2.module import Phase2Module

    return command_line(make_experiment("LexLIP-Phase2", Phase2Module))


if __name__ == "__main__" and (status := run_command(main)):
    sys.exit(status)
