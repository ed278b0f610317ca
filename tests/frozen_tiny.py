"""Tiny frozen towers with random weights, captioned images, a cache of their features. Needs no fixture of pytest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 50), "grey": (128,) * 3,
    "black": (15,) * 3, "white": (240,) * 3, "pink": (240, 130, 180),
}  # fmt: skip
PLACES = ("left", "right", "above", "below")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the box of ##s small large photo on".split()
WIDTH = 16  # of the text tower


def write_towers(root: Path) -> tuple[str, str]:
    """A convolutional image tower as a timm folder and a sentence-transformers folder; gives their references."""
    image, text = root / "image", root / "text"
    image.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = 1.0
        with torch.no_grad():  # so that its features have sizes like those of a trained one
            model(torch.randn(8, 3, 32, 32))
        save_file(model.state_dict(), image / "model.safetensors")
        pixels = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "first_conv": "conv_stem"}
        config = {"architecture": "test_efficientnet", "num_classes": 0, "pretrained_cfg": pixels}
        (image / "config.json").write_text(json.dumps(config))
        words = [*WORDS, *COLOURS, *PLACES]
        (root / "vocab.txt").write_text("\n".join(words) + "\n")
        shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        bert = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=12, **shape))
        with torch.no_grad():
            bert.embeddings.word_embeddings.weight.mul_(20)
        bert.save_pretrained(text)
    BertTokenizerFast(vocab=str(root / "vocab.txt"), do_lower_case=True, model_max_length=12).save_pretrained(text)
    (text / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (text / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [
        {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"}
        for n, (k, p) in enumerate(kinds)
    ]  # noqa: E501
    (text / "modules.json").write_text(json.dumps(modules))
    return f"timm:{image}", f"st:{text}"


def write_table(root: Path, images: int) -> Path:
    """So many images of a coloured box at a place, with two captions each."""
    root.mkdir(parents=True)
    lines = ["title\tfilepath\timage_id"]
    rng = np.random.default_rng(0)
    for number in range(images):
        colour, place = list(COLOURS)[number % len(COLOURS)], PLACES[number // len(COLOURS) % len(PLACES)]
        pixels = rng.integers(90, 160, (32, 32, 3), dtype=np.uint8)
        box = {
            "left": np.s_[4:28, :14],
            "right": np.s_[4:28, 18:],
            "above": np.s_[:14, 4:28],
            "below": np.s_[18:, 4:28],
        }
        pixels[box[place]] = COLOURS[colour]
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines += [f"a {colour} box {place}\t{number}.png\tbox{number}", f"the {colour} boxs\t{number}.png\tbox{number}"]
    (root / "table.tsv").write_text("\n".join(lines) + "\n")
    return root / "table.tsv"
