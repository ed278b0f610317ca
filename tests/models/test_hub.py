"""Model folders: what `save_pretrained` leaves in one."""

import pytest

from lexlip import LexLIP, ModelConfig
from lexlip.train.build import build_model


def test_saving_over_another_model_leaves_nothing_of_it(make_config, tmp_path):
    model = build_model(LexLIP, make_config())
    model.save_pretrained(tmp_path)
    for stale in ("phase2.safetensors", "tokenizer.json", "vocab.txt"):
        (tmp_path / stale).write_text("old")
    model.save_pretrained(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    for_others = ["config_sentence_transformers.json", "modules.json"]
    own = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert left == sorted(own + for_others)
    assert LexLIP.from_pretrained(tmp_path).config == ModelConfig(**vars(model.config))
    with pytest.raises(TypeError, match="imagesize"):
        LexLIP.from_pretrained(tmp_path, imagesize=3)
