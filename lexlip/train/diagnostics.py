"""What can go wrong in the middle of a training, and what is kept of it for inspection."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from lexlip.utils.files import write_json
from lexlip_data.errors import DataError

log = logging.getLogger(__name__)


class SkippedSamples:
    """Broken training samples of all processes: counted, listed in a file, refused beyond a share of the epoch.

    Every process keeps the same counts, so all of them refuse at the same step.

    Args:
        share: largest share of an epoch's pairs that may be broken.
    """

    FILE = "skipped_samples.tsv"

    def __init__(self, share: float):
        self.share = share
        self.total = 0
        self.epoch, self.of_epoch = 0, 0

    def add(self, lines: list[str], epoch: int, pairs: int, folder: Path | None, first: bool) -> None:
        """Note the skipped samples of one step.

        Args:
            lines: "data set/image id: reason" each.
            epoch: that the step belongs to.
            pairs: in one epoch.
            folder: where the list is written; None: not written.
            first: whether this is the process that logs and writes.

        Raises:
            DataError: more than the share of this epoch's pairs.
        """
        if epoch != self.epoch:
            self.epoch, self.of_epoch = epoch, 0
        for line in lines:
            self.total += 1
            if first:
                log.warning("training sample skipped, %d so far: %s", self.total, line)
        self.of_epoch += len(lines)
        where = ""
        if folder is not None:
            where = f"; {folder / self.FILE} lists them"
        if folder is not None and first:
            self._list(lines, str(epoch), folder)
        if self.of_epoch > self.share * pairs:
            raise DataError(
                f"{self.of_epoch} of the {pairs} training pairs of epoch {epoch} were broken so far, more than "
                f"max_bad_share={self.share}{where}. Repair or remove them, or allow a larger share"
            )

    def list_rows(self, lines: list[str], folder: Path) -> None:
        """List the rows of the training tables that make no sample: no epoch has them, so they get a "-" for it."""
        if lines and not (folder / self.FILE).exists():
            self._list(lines, "-", folder)

    def _list(self, lines: list[str], epoch: str, folder: Path) -> None:
        try:
            with open(folder / self.FILE, "a", encoding="utf-8") as file:
                file.writelines(f"{epoch}\t{line}\n" for line in lines)
        except OSError as error:
            log.error("%s could not be written (%s)", folder / self.FILE, error)

    def state(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"total": self.total, "epoch": self.epoch, "of_epoch": self.of_epoch}

    def load(self, state: dict[str, int]) -> None:
        """Go on counting from a checkpoint."""
        self.total, self.epoch, self.of_epoch = state["total"], state["epoch"], state["of_epoch"]


def report_not_finite(
    folder: Path | None, step: int, batch: int, losses: dict[str, float], norm: float, samples: list[list]
) -> Path | None:
    """Write down a step whose loss or gradient was NaN or infinite.

    Args:
        folder: where to write; None: only log.
        step, batch: optimiser step and batch, counted from the start of the run.
        losses: by name.
        norm: of the gradient.
        samples: per process its (data set, image id, caption number) triples.

    Returns:
        The file, or None if none was written.
    """
    named = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    log.error("step %d left out: loss or gradient is not finite (%s; gradient norm %.4g)", step, named, norm)
    if folder is None:
        return None
    path = folder / f"not_finite_{batch:08d}.json"
    # JSON knows neither NaN nor infinity.
    plain = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
    content = {"step": step, "batch": batch, "losses": plain, "gradient_norm": str(norm), "samples": samples}
    try:
        write_json(content, path)
    except OSError as error:
        log.error("%s could not be written (%s)", path, error)
        return None
    return path
