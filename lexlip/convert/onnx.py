"""Both towers, up to the pooled vector, as ONNX files for serving.

Needs the extra packages onnx, onnxscript and onnxruntime: `pip install -e '.[onnx]'`.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lexlip.errors import CheckpointError
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
    if not isinstance(model, TwoTowers):
        raise CheckpointError(f"{folder} holds heads on frozen towers, which are not exported to ONNX")
    # Written out, because the exporter can follow neither the fused head nor the fused attention's memory layout.
    model.set_lexicon_head("textbook")
    for module in model.image_encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # a plain attribute of timm's attention
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    positions = model.text_encoder.config.max_position_embeddings
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=positions)
    text, image = _Side(model), _Side(model)
    sides = {  # with inputs to trace, others to compare, and the dimensions that may change
        "text.onnx": (text, _texts(model, 3, min(7, positions)), _texts(model, 2, min(5, positions)), (batch, length)),
        "image.onnx": (image, _images(model, 3), _images(model, 2), (batch,)),
    }
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


def _texts(model: LexLIP, rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _images(model: LexLIP, rows: int) -> dict[str, Tensor]:
    size = model.config.image_size
    return {"pixel_values": torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(rows))}
