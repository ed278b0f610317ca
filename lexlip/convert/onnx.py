"""Both towers, up to the pooled vector, as ONNX files for serving.

Needs the extra packages onnx, onnxscript and onnxruntime: `pip install -e '.[onnx]'`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lexlip.errors import CheckpointError
from lexlip.models.lexlip import LexLIP
from lexlip.ops.fused import PADDING_LOGIT
from lexlip.ops.max_logits import saturate

TOLERANCE = 1e-4


class _Text(nn.Module):
    """The text side with the textbook maximum, which the exporter can follow."""

    def __init__(self, model: LexLIP):
        super().__init__()
        self.encoder, self.head = model.text_encoder, model.text_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.head(self.encoder(input_ids, attention_mask))
        return saturate(logits.masked_fill(attention_mask[:, :, None] == 0, PADDING_LOGIT).amax(1))


class _Image(nn.Module):
    def __init__(self, model: LexLIP):
        super().__init__()
        self.encoder, self.head = model.image_encoder, model.image_head

    def forward(self, pixel_values: Tensor) -> Tensor:
        return saturate(self.head(self.encoder(pixel_values)).amax(1))


def export_onnx(folder: str | Path, out: str | Path) -> dict[str, float]:
    """Write OUT/text.onnx and OUT/image.onnx and compare both with torch on other shapes than they were traced with.

    Inputs and outputs: `input_ids`, `attention_mask` (batch, length) int64 and `pixel_values` (batch, 3, H, W)
    float32; `weights` (batch, V) float32 term weights, not normalised.

    Args:
        folder: a model folder.
        out: where the files go.

    Returns:
        File name -> largest absolute difference from torch.

    Raises:
        CheckpointError: no model folder, missing packages, or a difference over 1e-4.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        needed = "pip install onnx onnxscript onnxruntime"
        raise CheckpointError(f"{error.name} is needed to export to ONNX: {needed}") from error
    model = LexLIP.from_pretrained(folder)
    for module in model.image_encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # written out: the exporter stumbles over the fused kernel's memory layout
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    positions = model.text_encoder.config.max_position_embeddings
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=positions)
    parts = {
        "text.onnx": (_Text(model), _captions(model, 3, min(7, positions)), {0: batch, 1: length}),
        "image.onnx": (_Image(model), _pictures(model, 3), {0: batch}),
    }
    checks = {"text.onnx": _captions(model, 2, min(5, positions)), "image.onnx": _pictures(model, 2)}
    differences = {}
    for file, (part, inputs, dims) in parts.items():
        part.eval()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*axis name")  # inputs that share an axis
            program = torch.onnx.export(
                part, tuple(inputs.values()), dynamo=True, input_names=list(inputs), output_names=["weights"],
                dynamic_shapes={name: dims for name in inputs}, verbose=False,
            )  # fmt: skip
        draft = out / f"{file}.tmp"
        program.save(draft)
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            wanted = part(*checks[file].values())
        found = session.run(None, {name: value.numpy() for name, value in checks[file].items()})[0]
        differences[file] = float((torch.from_numpy(found) - wanted).abs().max())
        if not differences[file] <= TOLERANCE:
            draft.unlink()
            raise CheckpointError(f"{file} differs from torch by {differences[file]:.1e}, more than {TOLERANCE:.0e}")
        draft.replace(out / file)
    return differences


def _captions(model: LexLIP, rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _pictures(model: LexLIP, rows: int) -> dict[str, Tensor]:
    size = model.config.image_size
    return {"pixel_values": torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(rows))}
