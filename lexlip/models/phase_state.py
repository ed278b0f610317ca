"""A phase's own parts beside a model: the weakened decoder, or momentum encoders and queues.

A model folder holds them in a file of their own, named after the phase, so that the same phase can go on from it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lexlip.errors import CheckpointError
from lexlip.models.weights import MODEL_PREFIX

log = logging.getLogger(__name__)


def phase_file(folder: str | Path, phase: str) -> Path:
    """Where a model folder holds the own parts of a phase, by its name."""
    return Path(folder) / f"{phase.lower()}.safetensors"


def phase_state(folder: str | Path, phase: str) -> dict[str, Tensor]:
    """A phase's own parts in a model folder; empty where it has none, and for checkpoint files."""
    file = phase_file(folder, phase)
    if not file.is_file():
        return {}
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is broken ({error}); remove it to start the phase's own parts afresh") from error


def fit_phase(module: nn.Module, state: dict[str, Tensor], folder: str | Path, strict: bool = True) -> None:
    """Load a phase's own parts into it.

    Args:
        strict: raise where a part does not fit; else log it and leave that part as it starts.

    Raises:
        CheckpointError: strict, and names or shapes differ.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(MODEL_PREFIX)}
    for part in sorted({name.split(".")[0] for name in own}):
        wanted = {name: value.shape for name, value in own.items() if name.startswith(f"{part}.")}
        found = {name: value for name, value in state.items() if name.startswith(f"{part}.")}
        wrong = sorted(n for n in wanted.keys() | found.keys() if n not in found or wanted.get(n) != found[n].shape)
        if not wrong:
            module.load_state_dict(found, strict=False)
            log.info("%s: %s loaded", folder, part)
        elif strict:
            raise CheckpointError(f"{folder}: its {part} does not fit this run, first at {wrong[:3]}")
        else:
            log.warning("%s: its %s does not fit this run and starts afresh, first at %s", folder, part, wrong[:3])
