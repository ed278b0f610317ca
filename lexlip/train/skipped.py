"""Broken training samples: each is left out, counted and listed, and too many of them end the run."""

import logging
from pathlib import Path

from lexlip.utils.distributed import rank
from lexlip_data.errors import DataError

log = logging.getLogger(__name__)

FILE = "skipped_samples.tsv"


class SkippedSamples:
    """Counts of all processes, the same on each, so that all of them refuse at the same step."""

    def __init__(self, limit: float):
        self.limit = limit  # largest fraction of an epoch's pairs that may be broken (`max_bad_share`)
        self.total = self.epoch = self.of_epoch = 0

    def add(self, lines: list[str], epoch: int, pairs: int, folder: Path | None) -> None:
        """Note the skipped samples of one step.

        Args:
            lines: "data set/image id: reason" each, of all processes.
            epoch, pairs: that the step belongs to, and how many pairs one has.
            folder: where the list is written; None: not written.

        Raises:
            DataError: more than the limit of this epoch's pairs.
        """
        if epoch != self.epoch:
            self.epoch, self.of_epoch = epoch, 0
        if rank() == 0:
            for number, line in enumerate(lines, self.total + 1):
                log.warning("training sample skipped, %d so far: %s", number, line)
            _append(lines, str(epoch), folder)
        self.total += len(lines)
        self.of_epoch += len(lines)
        if self.of_epoch > self.limit * pairs:
            where = f"; {folder / FILE} lists them" if folder is not None else ""
            raise DataError(
                f"{self.of_epoch} of the {pairs} training pairs of epoch {epoch} were broken so far, more than "
                f"max_bad_share={self.limit}{where}. Repair or remove them, or allow a larger fraction"
            )

    def list_rows(self, lines: list[str], folder: Path | None) -> None:
        """List the rows of the training tables that make no sample: no epoch has them, so they get a "-" for it."""
        if folder is not None and rank() == 0 and not (folder / FILE).exists():
            _append(lines, "-", folder)

    def state(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"total": self.total, "epoch": self.epoch, "of_epoch": self.of_epoch}

    def load(self, state: dict[str, int]) -> None:
        """Go on counting from a checkpoint."""
        self.total, self.epoch, self.of_epoch = state["total"], state["epoch"], state["of_epoch"]


def _append(lines: list[str], epoch: str, folder: Path | None) -> None:
    if not lines or folder is None:
        return
    try:
        with open(folder / FILE, "a", encoding="utf-8") as file:
            file.writelines(f"{epoch}\t{line}\n" for line in lines)
    except OSError as error:
        log.error("%s could not be written (%s)", folder / FILE, error)
