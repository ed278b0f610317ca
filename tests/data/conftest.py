"""Tiny data sets that the tests of the data layer make for themselves."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import converter
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CAPTIONS = [
    "a black dog is running after a white dog in the snow",
    "two children playing with skateboards near the unfinished building",
    "a woman in an overcoat holds an umbrella, smiling",
    "the cat sleeps",
    "mountain climbers resting on snowy rocks above the clouds",
]


def make_jpeg(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def jpeg():
    return make_jpeg


@pytest.fixture
def make_folder(tmp_path):
    """make_folder(folder name, table name, images, captions per image) -> path of the table it wrote."""

    def make(folder: str, table: str, images: int = 6, per_image: int = 2, with_id: bool = True) -> Path:
        root = tmp_path / folder
        (root / "images").mkdir(parents=True, exist_ok=True)
        stem = table.split(".")[0]
        lines = ["title\tfilepath" + ("\timage_id" if with_id else "")]
        for i in range(images):
            file = f"images/{stem}_{i}.jpg"
            (root / file).write_bytes(make_jpeg(i))
            for k in range(per_image):
                caption = f"{CAPTIONS[(i + k) % len(CAPTIONS)]} {i}"
                lines.append(f"{caption}\t{file}" + (f"\t{1000 + i}" if with_id else ""))
        path = root / table
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small WordPiece tokenizer whose rarer words are in pieces."""
    from transformers import AutoTokenizer

    from lexlip_data.convert.vocabulary import build_tokenizer

    folder = tmp_path_factory.mktemp("vocab")
    build_tokenizer([f"{caption} 0 1 2 3 4 5 6 7 8 9" for caption in CAPTIONS], folder, vocab_size=110)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def config(tmp_path):
    """A full set of keys for the data module, over data in tmp_path."""
    return {
        "datasets": ["mine"], "data_root": str(tmp_path), "data_sets": {}, "max_images": None, "seed": 3,
        "train_transform_keys": ["vit_randaug"], "val_transform_keys": ["vit"], "image_size": 16, "max_text_len": 24,
        "whole_word_masking": True, "mlm_prob": 0.3, "decoder_mlm_prob": 0.5, "get_recall_metric": True,
        "batch_size": 4, "per_gpu_batchsize": 2, "eval_batch_size": None, "num_workers": 0,
    }  # fmt: skip


@pytest.fixture(scope="session")
def convert():
    """The command's script as a module."""
    return converter.script


@pytest.fixture
def command(convert):
    """command(words..., status=0): the converter's command in this process."""

    def run(*words, status=0):
        assert convert.main([str(word) for word in words]) == status

    return run


@pytest.fixture
def save():
    """save(path, table of pyarrow, rows per record batch): an Arrow file as other programs write it; gives the path."""

    def write(path: Path, table: pa.Table, rows_per_batch: int | None = None) -> Path:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_batch)
        return path

    return write


@pytest.fixture
def python():
    """python(code, arguments..., how=...): code in a process of its own that finds the data layer and nothing else."""

    def run(code: str, *arguments: object, **how) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "datasets")}
        words = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(words, env=environment, capture_output=True, timeout=300, **how)

    return run


@pytest.fixture(
    params=[
        ("coco", "train", "COCO/coco_train.tsv", "coco_caption_karpathy_train.arrow"),
        ("coco", "val", "COCO/coco_val.tsv", "coco_caption_karpathy_val.arrow"),
        ("f30k", "test", "F30k/f30k_test.tsv", "f30k_caption_karpathy_test.arrow"),
        ("gcc", "train", "CC4M/Train_GCC-training_output.csv", "conceptual_caption_train_0.arrow"),
        ("gcc", "val", "CC4M/Validation_GCC-1.1.0-Validation_output.csv", "conceptual_caption_val_0.arrow"),
        ("sbu", "train", "sbu/sbu_out.tsv", "sbu_0.arrow"),
        ("mine", "val", "mine/mine_val.tsv", "mine_val.arrow"),
    ],
    ids=lambda layout: "-".join(layout[:2]),
)
def layout(request, make_folder):
    """(data set, split, its table, the Arrow file made of it), for every place where a table is looked for."""
    name, split, table, output = request.param
    return name, split, make_folder(*table.split("/"), with_id=name not in ("gcc", "sbu")), output


@pytest.fixture
def mine(make_folder):
    """A data set `mine` with all three splits; gives its folder."""
    for split, images in (("train", 7), ("val", 5), ("test", 3)):
        folder = make_folder("mine", f"mine_{split}.tsv", images=images).parent
    return folder
