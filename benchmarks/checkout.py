"""Imported first: puts the checkout on the import path, so that a benchmark runs without an installation.

Run as a command, a benchmark ends as the project's commands do, also by Ctrl-C while torch loads.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip_data.command import interrupt_in_one_line, run_command  # noqa: E402

if Path(sys.argv[0]).resolve().parent == ROOT / "benchmarks" and multiprocessing.parent_process() is None:
    interrupt_in_one_line()


def run(main: Callable[[], object]) -> NoReturn:
    """Run a benchmark as a command: one line and an exit status for whatever a user can mend."""

    from lexlip.errors import UserError

    def work() -> int:
        result = main()
        return result if isinstance(result, int) else 0

    sys.exit(run_command(work, (UserError,)))
