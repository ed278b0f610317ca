"""Sentence-transformers folders read without that library: which transformer, and how its states become one vector.

Only what modules.json and the small configs beside it say is used; a type they name is looked up in a table here and
never imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models import weights
from lexlip.models.sizes import read_json
from lexlip.models.towers.reference import Reference

POOLINGS = {  # in the order in which several are concatenated; names of older configs
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip
ACTIVATIONS = {
    "Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid, "SiLU": nn.SiLU,
}  # fmt: skip


class Recipe(nn.Module):
    """From token states to the vector of a text.

    Attributes:
        transformer: reference of the model that gives the states.
        poolings: of POOLINGS, concatenated.
        steps: Dense and Normalize modules after it.
        max_length: tokens that are read; None: as many as the model can.
        lower: whether texts are lowered first.
        prompt: put before every text.
        include_prompt: whether its tokens are pooled too.
    """

    def __init__(
        self, transformer: Reference, poolings: list[str], steps: list[nn.Module], max_length: int | None = None,
        lower: bool = False, prompt: str = "", include_prompt: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.transformer, self.poolings, self.steps = transformer, poolings, nn.ModuleList(steps)
        self.max_length, self.lower, self.prompt, self.include_prompt = max_length, lower, prompt, include_prompt

    @classmethod
    def plain(cls) -> Recipe:
        """The mean of all tokens."""
        return cls(Reference("hf", ""), ["mean"], [])

    def forward(self, states: Tensor, counted: Tensor) -> Tensor:
        """(B, S, D) states and (B, S) bool, False where a token does not count, to (B, D')."""
        vectors = torch.cat([pool(name, states, counted) for name in self.poolings], -1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def as_json(self) -> dict:
        steps = [repr(step) for step in self.steps]
        return {"of": self.poolings, "then": steps, "lower": self.lower, "prompt": self.prompt}


def pool(name: str, states: Tensor, counted: Tensor) -> Tensor:
    """(B, S, D) to (B, D) by one of POOLINGS."""
    weight = counted[..., None].to(states.dtype)
    places = torch.arange(states.shape[1], device=states.device)
    if name == "max":
        return states.masked_fill(~counted[..., None], -torch.inf).amax(1)
    if name in ("cls", "lasttoken"):
        place = counted.int().argmax(1) if name == "cls" else (places * counted).amax(1)
        return states[torch.arange(states.shape[0], device=states.device), place]
    count = weight.sum(1).clamp(min=1e-9)
    return (states * weight).sum(1) / (count if name == "mean" else count.sqrt())


class Dense(nn.Module):
    """A linear layer and what follows it."""

    def __init__(self, linear: nn.Linear, activation: nn.Module):
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, vectors: Tensor) -> Tensor:
        return self.activation(self.linear(vectors))


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


@dataclass
class _Files:
    """Small files of a folder, or of a name on the hub."""

    reference: Reference
    fetched: dict[str, Path | None] = field(default_factory=dict)

    def path(self, name: str) -> Path | None:
        """Where a file is; None where there is none."""
        if folder := self.reference.folder:
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"tower {self.reference}: its modules.json leads out of the folder, to {path}")
            return path if path.is_file() else None
        if name not in self.fetched:
            try:
                self.fetched[name] = Path(hf_hub_download(self.reference.name, name))
            except EntryNotFoundError as error:
                # Without network a plain model may lie in the cache, and no such file beside it.
                if isinstance(error, LocalEntryNotFoundError) and self.reference.kind == "st":
                    raise ConfigError(
                        f"tower {self.reference} is no folder and could not be fetched: {error}"
                    ) from error
                self.fetched[name] = None
            except (OSError, HFValidationError) as error:
                raise ConfigError(
                    f"tower {self.reference} is neither a folder nor could it be fetched: {error}"
                ) from error
        return self.fetched[name]

    def json(self, name: str) -> Any:
        path = self.path(name)
        return read_json(path) if path else None


def read_recipe(reference: Reference) -> Recipe | None:
    """What modules.json says; None where there is none, unless the reference asks for one.

    Raises:
        ConfigError: none with st:, or a module that is not known here.
        CheckpointError: one of the folder's configs is no JSON, or a Dense module's weights are missing or do not fit.
    """
    files = _Files(reference)
    modules = files.json("modules.json")
    if modules is None:
        if reference.kind == "st":
            raise ConfigError(f"tower {reference} has no modules.json; for a plain model write hf:{reference.name}")
        return None
    kinds = [(str(module["type"]).rsplit(".", 1)[-1], str(module.get("path", ""))) for module in modules]
    if not kinds or kinds[0][0] != "Transformer":
        raise ConfigError(
            f"tower {reference}: its modules.json begins with {kinds[0][0] if kinds else 'nothing'}; only Transformer, "
            "Pooling, Dense, Normalize are read (for CLIP models name the original with hf:)"
        )
    inside = kinds[0][1]
    if inside and not reference.folder:
        raise ConfigError(f"tower {reference}: its transformer is in {inside}; download the model and name its folder")
    transformer = replace(reference, kind="hf", name=f"{reference.name}/{inside}" if inside else reference.name)
    own = files.json(f"{inside}/sentence_bert_config.json" if inside else "sentence_bert_config.json") or {}
    poolings, include_prompt = ["mean"], True
    steps: list[nn.Module] = []
    for kind, path in kinds[1:]:
        config = files.json(f"{path}/config.json") or {}
        if kind == "Pooling":
            poolings, include_prompt = _poolings(config, reference), bool(config.get("include_prompt", True))
        elif kind == "Dense":
            steps.append(_dense(files, path, config))
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind != "Dropout":  # nothing at inference
            raise ConfigError(f"tower {reference}: its module {kind} is not read; Pooling, Dense and Normalize are")
    whole = files.json("config_sentence_transformers.json") or {}
    prompt = (whole.get("prompts") or {}).get(whole.get("default_prompt_name"), "")
    return Recipe(
        transformer, poolings, steps, own.get("max_seq_length"), bool(own.get("do_lower_case")), prompt, include_prompt
    )


def _poolings(config: dict, reference: Reference) -> list[str]:
    named = config.get("pooling_mode")
    if named is None:
        old = {key: value for key, value in config.items() if key.startswith("pooling_mode_") and value}
        named = [name for name, key in POOLINGS.items() if old.pop(key, False)] or ([] if old else ["mean"])
        named += list(old)
    named = [named] if isinstance(named, str) else list(named)
    if unknown := [name for name in named if name not in POOLINGS]:
        raise ConfigError(f"tower {reference}: its pooling {unknown[0]} is not known; {', '.join(POOLINGS)} are")
    return named


def _dense(files: _Files, path: str, config: dict) -> Dense:
    name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1].removesuffix("()")
    if name not in ACTIVATIONS:
        raise ConfigError(f"{path}/config.json: activation {name} is not known; {', '.join(ACTIVATIONS)} are")
    linear = nn.Linear(int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)))
    file = files.path(f"{path}/model.safetensors")
    pickled = None if file else files.path(f"{path}/pytorch_model.bin")
    if not file and not pickled:
        raise CheckpointError(f"tower {files.reference}: {path} holds no model.safetensors")
    try:
        state = load_file(file) if file else weights.read(pickled or "")
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file or pickled} does not fit its config.json: {error}") from error
    return Dense(linear.float(), ACTIVATIONS[name]())
