"""A tiny model, and an index over its vocabulary."""

import io

import numpy as np
import pytest
from PIL import Image

from lexlip import LexLIP
from lexlip.index import SparseRows, build
from lexlip.train.build import build_model


@pytest.fixture
def image():
    """Makes PNG files of noise."""

    def make(seed=0, size=(40, 40)):
        pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def model_folder(tmp_path, make_config, tiny_data, livelier):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    model = build_model(LexLIP, make_config(vocab_size=len(tokenizer)), tokenizer)
    livelier(model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def model(model_folder):
    return LexLIP.from_pretrained(model_folder)


@pytest.fixture
def index_folder(tmp_path):
    """60 documents of random vectors over a small vocabulary, with string ids."""
    rng = np.random.default_rng(0)
    bags = [
        {int(term): float(w) for term, w in zip(rng.choice(40, 6, replace=False), rng.random(6) + 0.1)}
        for _ in range(60)
    ]
    build(tmp_path / "index", [SparseRows.from_bags(bags, ids=[f"photo {number}" for number in range(60)])])
    return tmp_path / "index"
