"""A tiny model, and an index of pictures that it encoded."""

import io

import numpy as np
import pytest
from PIL import Image

from lexlip import LexLIP
from lexlip.index import SparseRows, build
from lexlip.train.build import build_model


def encoded(seed=0, size=(40, 40), kind="PNG"):
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def picture():
    return encoded


@pytest.fixture(scope="session")
def rows_of_pictures():
    """Random vectors over a small vocabulary, string ids."""

    def make(documents=60, vocabulary=40, seed=0):
        rng = np.random.default_rng(seed)
        bags = [
            {int(term): float(w) for term, w in zip(rng.choice(vocabulary, 6, replace=False), rng.random(6) + 0.1)}
            for _ in range(documents)
        ]
        return SparseRows.from_bags(bags, ids=[f"photo {number}" for number in range(documents)])

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
def index_folder(tmp_path, rows_of_pictures):
    build(tmp_path / "index", [rows_of_pictures()])
    return tmp_path / "index"
