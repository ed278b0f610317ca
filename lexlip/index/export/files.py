"""Lines in files of bounded size, and the scripts beside this file that load them."""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

MAX_BYTES = 8 << 20  # a bulk request may have 100 MB, and 5 to 15 are advised


def write_lines(entries: Iterable[str], folder: Path, suffix: str) -> None:
    """Write entries, each whole lines, as documents-00000.suffix and so on."""
    folder.mkdir(exist_ok=True)
    number, size = -1, MAX_BYTES
    with ExitStack() as opened:
        for data in map(str.encode, entries):
            if size + len(data) > MAX_BYTES:
                opened.close()
                number, size = number + 1, 0
                file = opened.enter_context(open(folder / f"documents-{number:05d}.{suffix}", "wb"))
            file.write(data)
            size += len(data)


def copy_script(name: str, path: Path) -> None:
    """One of the shell scripts beside this file, so that it can be started."""
    shutil.copyfile(Path(__file__).with_name(name), path)
    path.chmod(0o755)
