"""Weights from files: strictly, with every exception named and logged.

A file is read with `weights_only=True`, so it can hold tensors, plain values and some inert names of Lightning, and
never runs code. Beside its model, a checkpoint or a model folder may hold a phase's own parts: the weakened decoder, or
momentum encoders and queues. A folder holds them in a file named after the phase, so that the same phase can go on from
it.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lexlip.errors import CheckpointError
from lexlip.models.config import CONFIG_FILE, WEIGHTS_FILE, ModelConfig
from lexlip.models.frozen.config import FROZEN, FrozenConfig
from lexlip.models.lightning_names import readable_names
from lexlip.models.sizes import header, on_meta, read_json, refuse_deep, refuse_hollow, refuse_large
from lexlip.models.trust import check_config, shown
from lexlip.utils.files import give_usual_rights
from lexlip_data.sources.files import writing

if TYPE_CHECKING:
    from lexlip.models.hub import FolderModel

log = logging.getLogger(__name__)

MODEL_PREFIX = "model."
TEXT_PREFIX = "text_encoder."
_LIGHTNING = readable_names()
GRID = 128  # patches along a side of an image: 2048 pixels in patches of 16
OFFICIAL_MARK = "text_transformer."


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole, in place of an older one.

    Raises:
        OSError: naming it.
    """
    draft = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            save_file(tensors, draft, metadata)
            give_usual_rights(draft)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: str | Path) -> dict:
    """The dict that a checkpoint file holds.

    Raises:
        CheckpointError: no such file, no checkpoint, cut short, or it wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        _refuse_packed(path)
        with torch.serialization.safe_globals(_LIGHTNING):  # type: ignore[arg-type]  # pairs are taken, not declared
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many kinds, most without the file's name
        if _is_checkpoint(path):
            named = re.search(r"GLOBAL (\S+)", str(error))
            which = f" ({shown(named[1])})" if named else ""
            reason = f"it holds Python objects that would run code when loaded{which}; only tensors and plain values "
            reason += "are read"
        else:
            reason = f"it is cut short or no checkpoint ({type(error).__name__})"
        raise CheckpointError(f"{path} was refused: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def _refuse_packed(path: Path) -> None:
    """torch packs nothing: a few compressed bytes could become any number of them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed = next((entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise CheckpointError(
                f"{path} was refused: its part {packed.filename!r} is compressed, as torch writes none"
            )


def _is_checkpoint(path: Path) -> bool:
    """Whether the file looks whole and like one of torch's, so that only its content can be at fault."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # a bare pickle


def known_config(path: str | Path, trust_sources: bool = False) -> ModelConfig | FrozenConfig | None:
    """How the model of a model folder, or of a checkpoint of either phase, is built; None where nothing says it.

    Args:
        trust_sources: as `check_config`.

    Raises:
        CheckpointError: as `read` and `check_config`, or it says something else.
    """
    path = Path(path)
    if path.is_dir():
        where = path / CONFIG_FILE
        saved = read_json(where) if where.is_file() else None
    else:
        where, saved = path, read(path).get("hyper_parameters")
        saved = saved.get("model") if isinstance(saved, dict) else None
    if saved is None:
        return None
    if isinstance(saved, dict) and saved.get("kind") == FROZEN:
        return FrozenConfig.checked(saved, where)
    try:
        config = ModelConfig(**saved)  # type: ignore[arg-type]  # what it is shows here
    except TypeError as error:
        raise CheckpointError(f"{where} holds the config of another kind of model: {error}") from error
    check_config(config, where, trust_sources)
    return config


def folder_config(folder: Path, trust_sources: bool = False) -> ModelConfig | FrozenConfig:
    """`known_config` of a folder that must hold a whole model."""
    config = known_config(folder, trust_sources) if (folder / WEIGHTS_FILE).is_file() else None
    if config is None:
        raise CheckpointError(f"{folder} is no model folder: {CONFIG_FILE} and {WEIGHTS_FILE} are needed")
    return config


def model_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of the model in a checkpoint of either phase or in a model folder, by the model's own names.

    Raises:
        CheckpointError: as `read`, or a file of another model.
    """
    path = Path(path)
    if path.is_dir():
        try:
            header(path / WEIGHTS_FILE)
            return load_file(path / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is no model folder: {error}") from error
    content = read(path)
    state = state_of(content, path)
    if any(name.startswith(OFFICIAL_MARK) for name in state):
        raise CheckpointError(
            f"{path} is a checkpoint of the official code; convert it once with `lexlip import-official {path} FOLDER`"
        )
    weights = {name[len(MODEL_PREFIX) :]: value for name, value in state.items() if name.startswith(MODEL_PREFIX)}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no LexLIP model; its first names are {list(state)[:3]}")
    others = [name for name in state if not name.startswith(MODEL_PREFIX)]
    if others and not _by_a_phase(content):
        raise CheckpointError(
            f"{path} holds names besides the model's, {others[:3]}, but no hyper_parameters: it was cut "
            "down. Keep hyper_parameters too, or the names model.* alone"
        )
    for part, count in sorted(Counter(name.split(".")[0] for name in others).items()):
        log.info("%s: %d entries of %s.* belong to its own phase and are not loaded", path, count, part)
    return weights


def check_shape(
    kind: type[FolderModel], config: ModelConfig | FrozenConfig, weights: Mapping[str, Tensor], path: str | Path,
    file: str | Path,
) -> None:  # fmt: skip
    """Refuse a config that does not fit the weights beside it, before anything of the size it asks for is allocated.

    Args:
        weights: by the model's own names; those of `header` do.
        path: for the messages.
        file: that holds the weights.

    Raises:
        CheckpointError: the model cannot be built, names or shapes do not fit, or it is much larger than the file.
    """
    if isinstance(config, ModelConfig):  # of towers, which may be as deep as it says
        refuse_deep(config, weights, path)
        model: Any = on_meta(lambda: _tried(kind(config)), path)
    else:
        model = on_meta(lambda: kind(config), path)
    if model is not None:
        refuse_large(model, path, file)
        make_fit(model, {name: value.to("meta") for name, value in weights.items()}, path)
        return
    check_text(config, weights, path)
    if isinstance(config, ModelConfig) and config.vit_kwargs:  # without, the tower is as large as its name says
        raise CheckpointError(f"{path}: vit={config.vit} with vit_kwargs needs a newer timm: pip install -U timm")


def _tried(model: FolderModel) -> FolderModel:
    """A model on the device meta, after its image tower has read an image of the size that its config asks for.

    Raises:
        Exception: whatever the tower raises where it cannot.
    """
    size, patch = model.config.image_size, model.image_encoder.patch
    if patch and (size % patch or size // patch > GRID):
        raise ValueError(f"image_size={size}: with patches of {patch} pixels a multiple of it, {GRID} times at most")
    try:
        model.eval().image_encoder(torch.empty(1, 3, size, size))
    except Exception as error:
        # Some towers ask for numbers, which an image on that device has none of, or for its autocast.
        if not any(word in str(error) for word in ("meta", "device type")):
            raise
    return model


def check_text(config: ModelConfig | FrozenConfig, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """`check_shape` of the text tower alone.

    Raises:
        CheckpointError: it cannot be built, or the first name that does not fit.
    """
    if isinstance(config, FrozenConfig):
        raise CheckpointError(f"{path} holds heads on frozen towers, not a text tower")
    from transformers import BertConfig  # here: transformers' models take seconds

    from lexlip.models.encoders import TextEncoder

    refuse_deep(config, weights, path)
    tower: Any = on_meta(lambda: TextEncoder(BertConfig(**config.text), config.corner_tokens), path)
    wanted = {f"{TEXT_PREFIX}{name}": tuple(value.shape) for name, value in tower.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items() if name.startswith(TEXT_PREFIX)}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: {name} is {found.get(name, 'absent')} in the weights and {wanted.get(name, 'absent')} by the "
                "config"
            )


def _by_a_phase(content: dict) -> bool:
    """Whether a checkpoint has what every phase writes beside its own parts: the run's config and the model's."""
    kept = content.get("hyper_parameters")
    return isinstance(kept, dict) and all(isinstance(kept.get(part), dict) for part in ("config", "model"))


def state_of(content: dict, path: str | Path) -> dict:
    """The state dict of a checkpoint's content, or the content itself where it is one.

    Raises:
        CheckpointError: it has no names, or tensors that claim more numbers than the file holds.
    """
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path} holds no state_dict of named tensors")
    refuse_hollow(state, path)
    return state


def load_model(model: FolderModel, path: str | Path) -> None:
    """Load a model's weights strictly from a checkpoint of either phase or a model folder.

    Positions of another image size are resampled in two dimensions.

    Raises:
        CheckpointError: as `model_weights`, or names or shapes that do not fit.
    """
    fit(model, model_weights(path), path)


def fit_words(weights: dict[str, Tensor], wanted: Mapping[str, Tensor], kinds: Sequence[str]) -> None:
    """Let weights have what a model has beyond others' towers and heads: inactive terms, own weights, a joint head.

    Args:
        wanted: the model's own state.
        kinds: of inactive terms that were asked for; without any, weights keep their own.
    """
    for name, value in wanted.items():
        inactive = name.endswith("_head.inactive")
        if (inactive or name.startswith(("own_weights", "joint_"))) and (name not in weights or (inactive and kinds)):
            weights[name] = value


def fit(model: FolderModel, weights: dict[str, Tensor], path: str | Path) -> None:
    """`load_model` with the weights already read; `path` is for the messages."""
    resampled = make_fit(model, weights, path)
    model.load_state_dict(weights)
    if resampled:
        log.info("%s: %d position tables resampled to %d px", path, resampled, model.config.image_size)


def make_fit(model: FolderModel, weights: dict[str, Tensor], path: str | Path) -> int:
    """Change weights to a model's shapes where only the image size differs; works without numbers, on the device meta.

    Returns:
        How many position tables were resampled.

    Raises:
        CheckpointError: names, shapes or kinds of numbers that do not fit.
    """
    wanted, wrong, resampled = model.state_dict(), [], 0
    for name, value in list(weights.items()):
        if name not in wanted:
            continue
        if value.is_floating_point() != wanted[name].is_floating_point():
            wrong.append(f"{name}: {value.dtype} in the file, {wanted[name].dtype} in the model")
            continue
        if value.shape == wanted[name].shape:
            continue
        fitted = _resample(model, name, value, wanted[name])
        if fitted is None:
            wrong.append(f"{name}: {tuple(value.shape)} in the file, {tuple(wanted[name].shape)} in the model")
        else:
            weights[name], resampled = fitted, resampled + 1
    missing = [f"{name}: not in the file" for name in wanted if name not in weights]
    extra = [f"{name}: not in the model" for name in weights if name not in wanted]
    if problems := wrong + missing + extra:
        hint = ""
        if any("decoder.weight" in line or "word_embeddings" in line for line in wrong):
            hint = "\nThe vocabularies differ: set tokenizer and vocab_size as in the run that wrote the file."
        raise CheckpointError(f"{path} does not fit this model:\n  " + "\n  ".join(problems[:5]) + hint)
    return resampled


def _resample(model: FolderModel, name: str, value: Tensor, wanted: Tensor) -> Tensor | None:
    """A position table for the model's grid; None for other tensors, and where the table's own grid is not square."""
    tower = getattr(model, "image_encoder", None)  # heads on frozen towers have none
    grid = getattr(getattr(getattr(tower, "backbone", None), "patch_embed", None), "grid_size", None)
    if grid is None or 0 in grid:  # images smaller than a patch
        return None
    from timm.layers import resample_abs_pos_embed  # here: timm takes seconds

    from lexlip.models.positions import CLS_ROWS, resample_relative_table, stretch_as_official

    if name.endswith("relative_position_bias_table") and value.shape[1] == wanted.shape[1]:
        side = round((value.shape[0] - CLS_ROWS) ** 0.5)
        if side % 2 == 0 or side**2 != value.shape[0] - CLS_ROWS:
            return None
        old = (side + 1) // 2
        if getattr(tower, "rel_pos", "") == "official" and old < grid[0]:
            return stretch_as_official(value.float(), tuple(grid)).to(value.dtype)
        return resample_relative_table(value.float(), (old, old), tuple(grid)).to(value.dtype)
    if name.endswith("pos_embed") and value.ndim == 3 and value.shape[2] == wanted.shape[2]:
        prefix = wanted.shape[1] - grid[0] * grid[1]
        return resample_abs_pos_embed(value, list(grid), num_prefix_tokens=prefix)
    return None


def phase_file(folder: str | Path, phase: str) -> Path:
    """Where a model folder holds the own parts of a phase, by its name."""
    return Path(folder) / f"{phase.lower()}.safetensors"


def phase_state(folder: str | Path, phase: str) -> dict[str, Tensor]:
    """A phase's own parts in a model folder; empty where it has none, and for checkpoint files."""
    file = phase_file(folder, phase)
    if not file.is_file():
        return {}
    try:
        header(file)
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
        held = {name: value for name, value in state.items() if name.startswith(f"{part}.")}
        wrong = sorted(n for n in wanted.keys() | held.keys() if n not in held or wanted.get(n) != held[n].shape)
        if not wrong:
            module.load_state_dict(held, strict=False)
            log.info("%s: %s loaded", folder, part)
        elif strict:
            raise CheckpointError(f"{folder}: its {part} does not fit this run, first at {wrong[:3]}")
        else:
            log.warning("%s: its %s does not fit this run and starts afresh, first at %s", folder, part, wrong[:3])
