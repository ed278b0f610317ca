"""README's figure shows what the model gives, and nothing else."""

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lexlip import LexLIP
from lexlip.train.build import build_model

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_readme_figure.py"
SVG = "{http://www.w3.org/2000/svg}"


def test_it_shows_the_heaviest_terms_and_the_score(tmp_path, make_config, tiny_data, livelier):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    model = livelier(build_model(LexLIP, make_config(vocab_size=len(tokenizer)), tokenizer))
    model.save_pretrained(tmp_path / "model")
    file, caption = tmp_path / "image.png", "red <ring> & a box"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(file)

    script = runpy.run_path(str(SCRIPT))
    drawing = ElementTree.fromstring(script["figure"](str(tmp_path / "model"), file.read_bytes(), caption, "by us"))

    texts = [text.text for text in drawing.iter(f"{SVG}text")]
    pairs = set(zip(texts, texts[1:]))
    model.eval()
    image, text = model.encode_image(file), model.encode_text(caption)
    for vector in (image, text):
        for term, weight in model.lexicon(vector, script["TERMS"])[0]:
            assert (term, f"{weight:.2f}") in pairs
    assert any(line.startswith(f"score {float(image @ text.T):.2f}:") for line in texts)
    assert "by us" in texts and "“red <ring> &" in texts
    bars = [float(bar.get("width")) for bar in drawing.iter(f"{SVG}rect")][1:]
    assert max(bars) == pytest.approx(script["LONGEST"])
    assert drawing.find(f"{SVG}image").get("href").startswith("data:image/png;base64,")
