"""Model folders out of checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lexlip.errors import CheckpointError
from lexlip.models.auto import model_class
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.two_tower import TwoTowers
from lexlip.models.weights import MODEL_PREFIX, fit, known_config, model_weights, phase_file, read
from lexlip.utils.files import give_usual_rights


def write_folder(model: TwoTowers, out: str | Path, state: dict[str, Tensor] | None = None, phase: int = 0) -> None:
    """`save_pretrained`, and a phase's own parts beside it.

    Args:
        state: the phase's own parts by its names.
        phase: 1 or 2, with `state`.
    """
    out = Path(out)
    model.save_pretrained(out)
    if state:
        file = phase_file(out, f"Phase{phase}")
        draft = file.with_name(file.name + ".tmp")
        save_file({name: value.contiguous() for name, value in state.items()}, draft)
        give_usual_rights(draft)
        draft.replace(file)


def export_checkpoint(
    path: str | Path, out: str | Path, tokenizer: str | None = None, phase_state: bool = False
) -> None:
    """A checkpoint of either phase as a model folder.

    Args:
        tokenizer: hub name or folder; None: the one in the checkpoint.
        phase_state: also keep the phase's own parts, so that the same phase can go on from the folder.

    Raises:
        CheckpointError: no checkpoint of this code.
    """
    content = read(path)
    weights = model_weights(path)
    known = known_config(path)
    if known is None:
        raise CheckpointError(f"{path} does not say how its model is built; it is no checkpoint of this code")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in content.get("tokenizer", {}).items():
            Path(folder, Path(name).name).write_text(text, encoding="utf-8")
        source = tokenizer or (folder if content.get("tokenizer") else None)
        if source is None:
            raise CheckpointError(f"{path} holds no tokenizer; name one with --tokenizer FOLDER")
        model = model_class(known)(known, load_tokenizer(source, known.vocab_size))
    fit(model, weights, path)
    state = {}
    if phase_state:
        state = {n: v for n, v in content["state_dict"].items() if not n.startswith(MODEL_PREFIX)}
    write_folder(model, out, state, phase=2 if any(n.startswith("twin.") for n in state) else 1)
