"""What a folder of sentence-transformers may name; needs no such library."""

import json

import pytest

from lexlip.convert.sparse_encoder import import_sparse_encoder
from lexlip.errors import CheckpointError

POOLING = "sentence_transformers.sparse_encoder.models.SpladePooling"


@pytest.mark.parametrize(
    "kind", ["evil.Model", "sentence_transformersx.Transformer", "sentence_transformers.models.Router",
             "sentence_transformers.models.Dense", "Transformer", None],
)  # fmt: skip
def test_code_of_a_folder_is_not_run(tmp_path, kind):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}, {"idx": 1, "name": "1", "path": "", "type": POOLING}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="modules.json names .*no other code"):
        import_sparse_encoder(str(tmp_path), "vit_tiny_patch16_224", 32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["{", "3", '[{"path": ""}]'])
def test_a_broken_list_of_modules_is_told(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match="is no list of modules"):
        import_sparse_encoder(str(tmp_path), "vit_tiny_patch16_224", 32)
