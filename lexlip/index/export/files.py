"""Lines in files of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 8 << 20  # a bulk request may have 100 MB, and 5 to 15 are advised


def write_lines(entries: Iterable[str], folder: Path, suffix: str, max_bytes: int = MAX_BYTES) -> None:
    """Write entries, each whole lines, as documents-00000.suffix and so on."""
    folder.mkdir(exist_ok=True)
    file, number, size = None, 0, 0
    try:
        for entry in entries:
            data = entry.encode()
            if file is None or size + len(data) > max_bytes:
                if file is not None:
                    file.close()
                file, size = open(folder / f"documents-{number:05d}.{suffix}", "wb"), 0
                number += 1
            file.write(data)
            size += len(data)
    finally:
        if file is not None:
            file.close()


def write_script(text: str, path: Path) -> None:
    """A shell script that can be started."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
