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


def write_towers(root: Path, seed: int = 0) -> tuple[str, str]:
    """A convolutional image tower as a timm folder and a sentence-transformers folder; gives their references."""
    image, text = root / "image", root / "text"
    image.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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


class World:
    """See the fixture `frozen`."""

    def __init__(self, root: Path):
        from lexlip.cli import main

        self.root, self.made = root, {}
        self.image, self.text = write_towers(root / "towers")
        self.table = write_table(root / "data", 24)
        self.features = root / "features"
        command = ["cache", "--data", self.table, "--image", self.image, "--text", self.text, "--out", self.features]
        assert main([*map(str, command), "--held-out", "0.2"]) == 0

    def train(self, head: str, **changes):
        """A run of 4 steps of "dense", "contextual" or "lookup"; the lexicons are taught by the dense one."""
        from runs import run_phase

        from Phase1.module import Phase1Module

        key = (head, *sorted(changes.items()))
        if key not in self.made:
            changes = {
                "features": str(self.features), "exp_name": head, "batch_size": 8, "per_gpu_batchsize": 8,
                "max_steps": 4, "checkpoint_steps": 1, "keep_checkpoints": 9, "term_min_count": 2, "head_width": WIDTH,
                "embed_dim": 12, "row_terms": 4, **changes,
            }  # fmt: skip
            named = ["task_frozen_dense_train"]
            if head != "dense":
                named = ["task_frozen_lexicon_train"]
                changes = {"head_text": head, "teacher": str(self.checkpoint("dense")), "train_top_k": [4], **changes}
            nothing = {"root": "", "tokenizer": "", "words": None}  # a cache has all of it
            self.made[key] = run_phase(nothing, self.root / "log", Phase1Module, named, **changes)
        return self.made[key]

    def checkpoint(self, head: str) -> Path:
        return self.train(head).folder / "checkpoints" / "last.ckpt"

    def folder(self, head: str, storage: str | None = "full") -> Path:
        from lexlip.cli import main

        out = self.root / f"{head}_{storage}"
        if not out.exists():
            options = ["--embed-towers"] if storage else []
            options += [f"--{storage}"] if storage in ("half", "int8") else []
            assert main(["export", str(self.checkpoint(head)), str(out), *options]) == 0
        return out
