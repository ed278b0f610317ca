"""The checkpoint files of a run: how they are written, which one is whole, what a run may resume from."""

import logging
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import nn

from lexlip.errors import CheckpointError
from lexlip.models.weights import read, state_of
from lexlip.train.optim import parameter_groups
from lexlip.utils.files import write_whole

log = logging.getLogger(__name__)

RESUMABLE = ("state_dict", "optimizer_states", "loops", "global_step", "batches_seen")  # what a run goes on from
ASIDE = ".aside"
STEP_FILE = re.compile(r"step_(\d+)\.ckpt")


class WholeFiles(TorchCheckpointIO):
    """Lightning's way to a checkpoint file, through `write_whole`.

    A failure is kept in `error` instead of raised: only one process writes, and the others wait for it afterwards.
    """

    error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        self.error = None
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch turns some of a full disk's errors into RuntimeError
            self.error = error


def clear_for(step: int, folder: Path) -> None:
    """Set aside what a run that goes on from a step must not take for its own, and remove halves of files.

    Later checkpoints are damaged ones that were passed over, or of a run that went another way from here.
    """
    for draft in folder.glob("*.tmp"):
        draft.unlink(missing_ok=True)
    for later in step_files(folder):
        if later > step:
            path = step_file(folder, later)
            path.replace(path.with_name(path.name + ASIDE))
            log.warning("%s is later than step %d, from which this run goes on; set aside as *%s", path, step, ASIDE)


def step_file(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder / f"step_{step:08d}.ckpt"


def step_files(folder: Path) -> list[int]:
    """The steps of which there is a file, whole or not, in order."""
    return sorted(int(match[1]) for path in folder.glob("*") if (match := STEP_FILE.fullmatch(path.name)))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that can be read to its end; those passed over are logged with the reason."""
    for step in reversed(step_files(folder)):
        path = step_file(folder, step)
        try:
            check_whole(path)
        except CheckpointError as error:
            log.warning("passed over: %s", error)
        else:
            return path
    return None


def check_whole(path: Path) -> None:
    """Read a checkpoint to its end and compare its checksums.

    Raises:
        CheckpointError: it is cut short or damaged, or no run can go on from it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not fit")
    read_resumable(path)


def read_resumable(path: str | Path) -> dict:
    """What a checkpoint holds.

    Raises:
        CheckpointError: as `read`, or it holds weights alone.
    """
    content = read(path)
    for name in RESUMABLE:
        if name not in content:
            raise CheckpointError(f"{path} cannot be resumed, it holds no {name}; load_path starts from its weights")
    return content


def ways_of(path: str | Path) -> dict[str, object]:
    """Keys that a checkpoint was written without, and what it did then; its optimiser's state fits no other way.

    Raises:
        CheckpointError: as `read_resumable`.
    """
    kept = read_resumable(path).get("hyper_parameters")
    saved = kept.get("config") if isinstance(kept, dict) else None
    if not isinstance(saved, dict) or "block_decay" in saved:
        return {}
    log.info("%s was written without block_decay: norms inside the image tower's blocks stay without decay", path)
    return {"block_decay": False}


def check_resumable(module: nn.Module, path: str | Path, block_decay: bool = False) -> None:
    """Refuse to resume from a file of another phase or shape, or whose optimiser had other groups.

    Args:
        block_decay: of the run, which decides its groups.

    Raises:
        CheckpointError: as `read_resumable`, or naming the file and the first names that differ.
    """
    content = read_resumable(path)
    theirs = {name: tuple(getattr(value, "shape", ())) for name, value in state_of(content, path).items()}
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    lines = [f"{n}: {ours.get(n, 'nothing')} in this run, {theirs.get(n, 'nothing')} in the file" for n in wrong[:5]]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"{path} is of another phase or model, load_path may start from it:\n  {listed}")
    sizes = [len(group["params"]) for group in parameter_groups(module, 0.0, block_decay=block_decay)]
    for state in content["optimizer_states"]:
        if (there := [len(group["params"]) for group in state["param_groups"]]) != sizes:
            raise CheckpointError(
                f"{path} cannot be resumed: its optimiser had groups of {there} parameters, this run's has {sizes} "
                "(an older version, or another choice of what is trained); load_path starts from its weights"
            )


def tokenizer_files(tokenizer) -> dict[str, str]:
    """A tokenizer's files by name, so that a checkpoint can be exported where the tokenizer is gone."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir())}
