"""Model folders out of checkpoints."""

import re
import tempfile
from pathlib import Path

from torch import Tensor

from lexlip.errors import CheckpointError
from lexlip.models.auto import model_class
from lexlip.models.retrieval import RetrievalModel
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.weights import (
    MODEL_PREFIX,
    check_shape,
    fit,
    known_config,
    model_weights,
    phase_file,
    read,
    save_tensors,
    state_of,
)

TOKENIZER_FILE = re.compile(r"[\w-]+\.(json|txt|model|jinja)", re.ASCII)


def write_folder(model: RetrievalModel, out: str | Path, state: dict[str, Tensor], phase: str) -> None:
    """`save_pretrained`, and a phase's own parts beside it, by its names, if there are any."""
    out = Path(out)
    model.save_pretrained(out)
    if state:
        save_tensors({name: value.contiguous() for name, value in state.items()}, phase_file(out, phase))


def export_checkpoint(
    path: str | Path, out: str | Path, tokenizer: str | None = None, phase_state: bool = False,
    trust_sources: bool = False,
) -> None:  # fmt: skip
    """A checkpoint of either phase as a model folder.

    Args:
        tokenizer: hub name or folder; None: the one in the checkpoint.
        phase_state: also keep the phase's own parts, so that the same phase can go on from the folder.
        trust_sources: also follow an image tower's name that leads to the hub or to a folder.

    Raises:
        CheckpointError: no checkpoint of this code.
    """
    content, weights, config = read(path), model_weights(path), known_config(path, trust_sources)
    if config is None:
        raise CheckpointError(f"{path} does not say how its model is built; it is no checkpoint of this code")
    check_shape(model_class(config), config, weights, path, path)
    files = content.get("tokenizer", {})
    if not isinstance(files, dict) or not all(isinstance(part, str) for entry in files.items() for part in entry):
        raise CheckpointError(f"{path}: its tokenizer must be texts by the names of files")
    if not tokenizer and not files:
        raise CheckpointError(f"{path} holds no tokenizer; name one with --tokenizer FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            if not TOKENIZER_FILE.fullmatch(name):
                raise CheckpointError(f"{path}: its tokenizer holds {name!r}, which is no plain name of a text file")
            Path(folder, name).write_text(text, encoding="utf-8")
        model = model_class(config)(config, load_tokenizer(tokenizer or folder, config.vocab_size))
    fit(model, weights, path)
    state = {name: value for name, value in state_of(content, path).items() if not name.startswith(MODEL_PREFIX)}
    write_folder(model, out, state if phase_state else {}, _phase(content, state))


def _phase(content: dict, state: dict[str, Tensor]) -> str:
    """The phase that wrote a checkpoint. Older ones do not say, but Phase 1 has no parts of its own in mode con."""
    mode = content["hyper_parameters"].get("config", {}).get("training_mode")
    return content.get("phase") or ("Phase2" if mode == "con" and state else "Phase1")
