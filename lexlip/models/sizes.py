"""Sizes before memory: what a file's weights say of themselves, compared with the model that a config asks for.

The model is built on torch's device "meta", where tensors have shapes and no numbers, so a config that asks for a
billion layers or words is refused in milliseconds. What a whole model needs beside its file's weights (position
indexes, tables of another image size) is bounded too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.trust import DEPTHS

HEADER, CONFIG = 16 << 20, 1 << 20  # bytes of a safetensors header and of a config.json; those of real models: KB
BESIDE = 128 << 20  # bytes that a model may need beside its weights
WIDER = 4  # numbers of 8 bits in a file become 32 bits in the model
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_json(file: Path) -> object:
    """What a JSON file of a model folder holds.

    Raises:
        CheckpointError: it cannot be read, is no JSON, or is larger than any config.
    """
    try:
        if (size := file.stat().st_size) > CONFIG:
            raise CheckpointError(f"{file} has {size:,} bytes; a config has {CONFIG:,} at most")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise CheckpointError(f"{file} is no config: lists in lists without end") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error


def header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, without their numbers, on the device meta.

    Raises:
        CheckpointError: an entry without numbers, or of a type that no model of ours has.
        OSError, SafetensorError: it cannot be read; safetensors compares the header with the file's length.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > HEADER:
        raise SafetensorError(f"a header of {length:,} bytes; {HEADER:,} at most")
    found = {}
    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118  (not a dict)
            entry = content.get_slice(name)
            shape, kind = entry.get_shape(), entry.get_dtype()
            if 0 in shape or kind not in TYPES:
                raise CheckpointError(f"{file}: {name} of shape {shape} and type {kind} is no weight of a model")
            found[name] = torch.empty(shape, dtype=TYPES[kind], device="meta")
    return found


def refuse_hollow(state: Mapping[str, object], path: str | Path) -> None:
    """Refuse tensors of a checkpoint that have more entries than the file has bytes for.

    A tensor may repeat one number along an axis, or many may share one storage; sparse ones need hold nothing.

    Raises:
        CheckpointError: naming the first, or all of them together.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes() or 0 in value.shape:
            raise CheckpointError(f"{path}: {name} of shape {tuple(value.shape)} is not stored number by number")
    claimed, size = sum(value.numel() * value.element_size() for value in tensors.values()), Path(path).stat().st_size
    if claimed > WIDER * size + BESIDE:
        raise CheckpointError(f"{path} has {size:,} bytes, but its tensors would take {claimed:,}")


def refuse_deep(config: ModelConfig, names: Collection[str], path: str | Path) -> None:
    """Refuse towers with more layers than there are tensors: even without numbers, each layer takes milliseconds.

    Raises:
        CheckpointError: naming both numbers.
    """
    kwargs, layers = config.vit_kwargs, config.text.get("num_hidden_layers", 12)
    for name in DEPTHS:
        value = kwargs.get(name, 0)
        layers += sum(value) if isinstance(value, (list, tuple)) else value
    if layers > len(names):
        raise CheckpointError(f"{path}: its config asks for {layers} layers, but its weights are {len(names)} tensors")


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills tensors without numbers: drawing them takes most of the time that a large tower takes."""

    FILLING = frozenset(
        getattr(Tensor, name) for name in "uniform_ normal_ erfinv_ mul_ div_ add_ clamp_ fill_ zero_".split()
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.FILLING and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def on_meta(build: Callable[[], nn.Module], path: str | Path) -> nn.Module | None:
    """What `build` makes, without memory and without drawing random numbers; None where a layer cannot be made so.

    Raises:
        CheckpointError: it cannot be built.
    """
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"), _Unfilled():
            return build()
    except Exception as error:  # timm, transformers and torch each raise their own kinds
        if isinstance(error, NotImplementedError) or isinstance(error.__cause__, NotImplementedError):
            return None
        told = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: no model can be built from its config: {told or type(error).__name__}"
        ) from error


def refuse_large(model: nn.Module, path: str | Path, file: str | Path) -> None:
    """Refuse a model, made by `on_meta`, that needs much more memory than its file of weights has bytes.

    Raises:
        CheckpointError: naming both numbers.
    """
    needed = sum(value.numel() * value.element_size() for value in chain(model.parameters(), model.buffers()))
    size = Path(file).stat().st_size
    if needed > WIDER * size + BESIDE:
        raise CheckpointError(
            f"{path}: its config asks for a model of {needed:,} bytes, but {file} has {size:,}; the two do not belong "
            "together, or image_size is too large"
        )
