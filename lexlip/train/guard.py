"""What happens after a step whose loss or gradient is not finite: it is left out, written down, and not repeated."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lexlip.errors import TrainingError
from lexlip.train.step import total
from lexlip.utils.distributed import gather_objects, rank
from lexlip.utils.files import write_json

log = logging.getLogger(__name__)

MOST_OVERFLOWS = 20  # in a row; a loss scale of 65,536 has then fallen below 1
ADVICE = "Lower learning_rate, or use precision=bf16 or 32, and go on from the last checkpoint"


class StepGuard:
    """Counts steps that were left out; at the limit-th in a row (`max_nonfinite_steps`) it refuses to go on."""

    def __init__(self, limit: int):
        self.limit = limit
        self.finite = True  # whether the step under way is
        self.not_finite = self.overflowed = 0  # steps in a row that were left out: by this guard, by a loss scaler
        self._losses: Mapping[str, Tensor] = {}
        self._norm = torch.zeros(())

    def begin(self, losses: Mapping[str, Tensor]) -> None:
        """Take the losses of the global batch, the same on every process."""
        self._losses, self._norm, self.finite = losses, torch.zeros(()), True

    def inspect(self, norm: Tensor, scaled: bool) -> bool:
        """Whether a step with this () norm of its unscaled gradient may change the weights.

        Where the gradient is `scaled`, the loss scaler handles overflows, which are common, by itself.
        """
        loss = total(self._losses.values())
        self._norm = norm
        self.finite = bool(torch.isfinite(loss if scaled else loss + norm))
        return self.finite

    def passed(self) -> None:
        """The step changed the weights."""
        self.not_finite = self.overflowed = 0

    def overflow(self, scale: float) -> None:
        """The loss scaler, now at `scale`, left the step out.

        Raises:
            TrainingError: it has done so too often in a row.
        """
        self.overflowed += 1
        if self.overflowed >= MOST_OVERFLOWS:
            raise TrainingError(
                f"the gradient overflowed in {self.overflowed} steps in a row, although the loss scale fell to "
                f"{scale:.3g}: it is NaN or infinite by itself, and no such step changed the weights. {ADVICE}"
            )

    def left_out(
        self, step: int, batch: int, samples: Sequence, folder: Path | None, save: Callable[[Path], Exception | None]
    ) -> None:
        """Write down a step that was not finite; called by all processes.

        Args:
            step, batch: optimiser step and batch, counted from the start of the run.
            samples: (data set, image id, caption number) of this process's rows.
            folder: the run directory; None: nothing is written.
            save: writes the state to a file; gives what kept it from doing so.

        Raises:
            TrainingError: the limit is reached.
        """
        self.not_finite += 1
        everyone = gather_objects([list(sample) for sample in samples])
        note = folder and folder / f"not_finite_{batch:08d}.json"
        if rank() == 0:
            self._write_down(step, batch, everyone, note)
        if self.not_finite < self.limit:
            return
        kept = ""
        if note is not None:
            failed = save(note.with_suffix(".ckpt"))
            state = f" (the state could not be saved: {failed})" if failed else ", the .ckpt beside it holds the state"
            listed = note if rank() or note.is_file() else folder
            kept = f"; {listed} lists the batch's samples{state}"
        raise TrainingError(
            f"loss or gradient was not finite in {self.not_finite} steps in a row (max_nonfinite_steps), the last one "
            f"is {step}; no such step changed the weights{kept}. {ADVICE}"
        )

    def _write_down(self, step: int, batch: int, samples: list[list], note: Path | None) -> None:
        losses, norm = {name: float(value) for name, value in self._losses.items()}, float(self._norm)
        named = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        log.error("step %d left out: loss or gradient is not finite (%s; gradient norm %.4g)", step, named, norm)
        if note is None:
            return
        # JSON knows neither NaN nor infinity.
        plain = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
        content = {"step": step, "batch": batch, "losses": plain, "gradient_norm": str(norm), "samples": samples}
        try:
            write_json(content, note)
        except OSError as error:
            log.error("%s could not be written (%s)", note, error)
