"""A run's claim on its directory: no second run trains there meanwhile, and a refused run leaves no trace."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: two runs in one directory are not noticed there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = "run.lock"


class Taken(Exception):
    """Another process trains in the directory; the message says which, as far as it is known."""


class Claim:
    """One run's directory, made if need be. Ends with `release`, or with the process, however it ends.

    Args:
        folder: the run directory.
        alone: lock it; an evaluation may share it.

    Raises:
        Taken: another process holds the lock.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, alone: bool):
        self.folder, self.begun = folder, False
        self.made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = _locked(folder / LOCK) if alone and fcntl is not None else None

    def release(self) -> None:
        """Let other runs have the directory."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def give_back(self, names: tuple[str, ...]) -> None:
        """Remove a directory that this run made and did not use: these files, sacred's record and empty folders."""
        if not self.made or self.begun:
            return
        records = self.folder / "sacred"
        with suppress(OSError):  # what another run has put there meanwhile stays, and so does the directory
            if sum(path.name.isdigit() for path in records.glob("*")) == 1:
                shutil.rmtree(records)
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            for folder in (*(path for path in self.folder.iterdir() if path.is_dir()), self.folder, self.folder.parent):
                folder.rmdir()


def _locked(path: Path) -> IO[str] | None:
    # A record lock: unlike flock's, forked loader processes do not keep it when this process is killed.
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the claim)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise Taken(holder) from None
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s); start no second run there meanwhile", path.parent, error.strerror)
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file
