"""Checkpoints of LoTLIP, or of any model in open_clip's layout with the same towers, turned into model folders.

The layout: a timm ViT under `visual.trunk`, a Hugging Face BERT with its pooler under `text.transformer`, its words
followed by the corner tokens, a projection `text.proj` without bias, and `logit_scale`. Shapes are read from the
weights; every parameter is used or refused by name.
"""

from pathlib import Path

from torch import Tensor

from lexlip.convert.names import BERT_NEEDED, HEAD_WIDTH, bert_config, depth, translate
from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.dense import DenseLIP
from lexlip.models.tokenizer import load_tokenizer
from lexlip.models.trust import check_config
from lexlip.models.weights import check_shape, fit, read, state_of

CONTEXT = 128  # tokens that LoTLIP reads
NORM_EPS = 1e-6  # of timm's ViT
TEXT = "text.transformer."

NAMES = {  # open_clip -> here
    r"visual\.trunk\.norm\.(.*)": r"image_encoder.norm.\1",
    r"visual\.trunk\.(.*)": r"image_encoder.backbone.\1",
    r"visual\.head\.proj\.weight": "image_projection.weight",
    r"text\.transformer\.pooler\.dense\.(.*)": r"text_pooler.\1",
    r"text\.transformer\.(.*)": r"text_encoder.bert.\1",
    r"text\.proj\.weight": "text_projection.weight",
    r"logit_scale": "logit_scale",
}
UNUSED = {r"text\.transformer\.embeddings\.(position|token_type)_ids": "counters"}
NEEDED = (
    "visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "visual.trunk.blocks.0.mlp.fc1.weight",
    "text.proj.weight", *(TEXT + name for name in BERT_NEEDED),
)  # fmt: skip


def import_lotlip(path: str | Path, corner_tokens: int = 2, tokenizer: str | None = None) -> DenseLIP:
    """Read a LoTLIP checkpoint.

    Args:
        path: the file, a state dict or a training checkpoint that holds one.
        corner_tokens: how many of BERT's words, the last ones, are corners; the weights do not say.
        tokenizer: hub name or folder, saved along.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: another layout, or a name or shape that has no place here.
        ConfigError: a tokenizer that does not fit the words that are left beside the corners.
    """
    weights = {name.removeprefix("module."): value for name, value in state_of(read(path), path).items()}
    absent = [name for name in NEEDED if not isinstance(weights.get(name), Tensor)]
    if absent:
        raise CheckpointError(f"{path} is no LoTLIP checkpoint: it holds no {absent[0]}")
    config = _config(weights, corner_tokens)
    words = config.text["vocab_size"]
    if not 0 <= corner_tokens < words:
        raise CheckpointError(f"--corner-tokens {corner_tokens}: {path} has {words} words, the corners among them")
    state, _ = translate(weights.items(), NAMES, UNUSED, path)
    check_config(config, path)
    check_shape(DenseLIP, config, state, path, path)
    model = DenseLIP(config, load_tokenizer(tokenizer, config.vocab_size) if tokenizer else None)
    fit(model, state, path)
    return model.eval()


def _config(weights: dict[str, Tensor], corner_tokens: int) -> ModelConfig:
    patches, table, mlp, projection = (weights[name].shape for name in NEEDED[:4])
    width, patch = patches[0], patches[-1]
    text = bert_config(weights, TEXT)
    return ModelConfig(
        head="dense",
        vit="vit_base_patch16_224",
        vit_kwargs={
            "patch_size": patch, "embed_dim": width, "depth": depth(weights, "visual.trunk.blocks."),
            "num_heads": max(1, width // HEAD_WIDTH), "mlp_ratio": mlp[0] / width,
        },
        image_size=round((table[1] - 1) ** 0.5) * patch,
        image_norm_eps=NORM_EPS,
        text=text,
        max_text_len=min(CONTEXT, text["max_position_embeddings"]),
        corner_tokens=corner_tokens,
        sentence_sep=True,
        embed_dim=projection[0],
        text_pooler=f"{TEXT}pooler.dense.weight" in weights,
        image_projection="visual.head.proj.weight" in weights,
    )  # fmt: skip
