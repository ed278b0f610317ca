"""Lines in files of bounded size."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

MAX_BYTES = 8 << 20  # a bulk request may have 100 MB, and 5 to 15 are advised


def write_lines(entries: Iterable[str], folder: Path, suffix: str, max_bytes: int = MAX_BYTES) -> None:
    """Write entries, each whole lines, as documents-00000.suffix and so on."""
    folder.mkdir(exist_ok=True)
    number, size = -1, max_bytes
    with ExitStack() as opened:
        for data in map(str.encode, entries):
            if size + len(data) > max_bytes:
                opened.close()
                number, size = number + 1, 0
                file = opened.enter_context(open(folder / f"documents-{number:05d}.{suffix}", "wb"))
            file.write(data)
            size += len(data)


def write_script(text: str, path: Path) -> None:
    """A shell script that can be started."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
