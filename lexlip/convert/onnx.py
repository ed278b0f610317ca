"""Both sides of a model, up to the pooled vector, as ONNX files for serving.

Needs the extra packages onnx, onnxscript and onnxruntime: `pip install -e '.[onnx]'`.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lexlip.convert.onnx_frozen import FrozenImageSide, text_side
from lexlip.errors import CheckpointError
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.lexlip import LexLIP
from lexlip.models.two_tower import TwoTowers
from lexlip_data.sources.files import writing

TOLERANCE = 1e-4


class _Side(nn.Module):
    """A tower and its head."""

    def __init__(self, model: LexLIP):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model.lexicon_image(inputs) if mask is None else self.model.lexicon_text(inputs, mask)


def export_onnx(folder: str | Path, out: str | Path, trust_sources: bool = False) -> dict[str, float]:
    """Write OUT/text.onnx and OUT/image.onnx and compare both with torch on other shapes than they were traced with.

    Inputs and outputs: `input_ids`, `attention_mask` (batch, length) int64 and `pixel_values` (batch, 3, H, W)
    float32; `weights` (batch, V) float32 term weights, not normalised. `trust_sources` is `from_pretrained`'s.

    Returns:
        File name -> largest absolute difference from torch.

    Raises:
        CheckpointError: no model folder, missing packages, or a difference over 1e-4.
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    for package in packages:
        if find_spec(package) is None:
            raise CheckpointError(f"{package} is needed to export to ONNX: pip install {' '.join(packages)}")
    import onnxruntime

    model = LexLIP.from_pretrained(folder, trust_sources=trust_sources)
    sides = _of_two_towers(model) if isinstance(model, TwoTowers) else _of_frozen(model)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    differences = {}
    for file, (side, inputs, others, dims) in sides.items():
        side.eval()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*axis name")  # inputs that share an axis
            program = torch.onnx.export(
                side, tuple(inputs.values()), dynamo=True, input_names=list(inputs), output_names=["weights"],
                dynamic_shapes=[dict(enumerate(dims))] * len(inputs), verbose=False,
            )  # fmt: skip
        assert program is not None  # as `dynamo` makes one
        draft = out / f"{file}.tmp"
        with writing(out / file):
            program.save(draft)
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            wanted = side(*others.values())
        result = session.run(None, {name: value.numpy() for name, value in others.items()})[0]
        differences[file] = float((torch.from_numpy(result) - wanted).abs().max())
        if not differences[file] <= TOLERANCE:
            draft.unlink()
            raise CheckpointError(f"{file} differs from torch by {differences[file]:.1e}, more than {TOLERANCE:.0e}")
        draft.replace(out / file)
    return differences


# A module, inputs to trace, others to compare, and the dimensions that may change.
Exported = tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], tuple]


def _dims(longest: int, shortest: int = 2) -> tuple:
    return torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=shortest, max=longest)


def _of_two_towers(model: Any) -> dict[str, Exported]:
    # Written out, because the exporter can follow neither the fused head nor the fused attention's memory layout.
    model.set_lexicon_head("textbook")
    _no_fused_attention(model.image_encoder)
    positions, vocabulary = model.text_encoder.config.max_position_embeddings, model.config.vocab_size
    batch, length = _dims(positions)
    text, image, shape = _Side(model), _Side(model), (3, model.config.image_size, model.config.image_size)
    some, others = (_texts(vocabulary, rows, min(tokens, positions)) for rows, tokens in ((3, 7), (2, 5)))
    return {
        "text.onnx": (text, some, others, (batch, length)),
        "image.onnx": (image, _images(shape, 3), _images(shape, 2), (batch,)),
    }


def _of_frozen(model: FrozenLexLIP) -> dict[str, Exported]:
    image, text = FrozenImageSide(model), text_side(model)
    _no_fused_attention(image)
    batch, length = _dims(model.context)
    shape = tuple(model.image_transform()(Image.new("RGB", (8, 8))).shape)
    sides: dict[str, Exported] = {"image.onnx": (image, _images(shape, 3), _images(shape, 2), (batch,))}
    if text is not None:
        some, others = (_texts(model.config.vocab_size, rows, tokens) for rows, tokens in ((3, 7), (2, 5)))
        sides["text.onnx"] = (text, some, others, (batch, length))
    return sides


def _no_fused_attention(module: nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]  # a plain attribute of timm's attention


def _texts(vocabulary: int, rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _images(shape: tuple[int, ...], rows: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))}
