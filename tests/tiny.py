"""A tiny data set, and the settings of a model that is trained on it in seconds. Needs no fixture of pytest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WORDS = "red green blue grey dark light dot ring cross box on beside under a the small large".split()
MODEL = {
    "num_gpus": 0, "num_workers": 0, "cpu_threads": 1, "seed": 1, "queue_size": 6, "datasets": ["tiny"],
    "image_size": 32, "max_text_len": 8, "drop_rate": 0.0, "vit": "beit_base_patch16_224", "vit_pretrained": False,
    "vit_kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5}, "patch_size": 8,
    "input_image_embed_size": 16, "text_pretrained": False, "text_layers": 2, "text_positions": 16,
    "input_text_embed_size": 16, "hidden_size": 16, "num_heads": 2, "decoder_layers": 1,
}  # fmt: skip
CONVOLUTIONAL = {"vit": "resnet10t", "vit_kwargs": {}, "patch_size": None, "input_image_embed_size": 512}


def write_tables(root: Path) -> list[str]:
    """The data set `tiny` as tables under a folder: 8, 4 and 4 images with 2 captions each; gives the captions."""
    rng = np.random.default_rng(0)
    (root / "tiny").mkdir(parents=True)
    captions = []
    for split, images in (("train", 8), ("val", 4), ("test", 4)):
        lines = ["title\tfilepath\timage_id"]
        for number in range(images):
            file = f"{split}_{number}.png"
            Image.fromarray(rng.integers(0, 255, (32, 36, 3), dtype=np.uint8)).save(root / "tiny" / file)
            for _ in range(2):
                captions.append(" ".join(rng.choice(WORDS, size=5)))
                lines.append(f"{captions[-1]}\t{file}\t{split}{number}")
        (root / "tiny" / f"tiny_{split}.tsv").write_text("\n".join(lines) + "\n")
    return captions
