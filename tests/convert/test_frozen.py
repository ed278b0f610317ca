"""Model folders of heads on frozen towers: what is exported encodes as before, wherever it lies."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lexlip import DenseLIP, LexLIP
from lexlip.cli import main
from lexlip.errors import CheckpointError, EncodingError, UserError
from lexlip.features.store import FeatureStore
from lexlip.index.lookup import has_table

TEXTS = ["a red box left", "the blue boxs", "a zebra"]


def images(frozen):
    return [frozen.table.parent / f"{number}.png" for number in range(4)]


@pytest.mark.parametrize(("storage", "near"), [("full", 1e-5), ("half", 1e-2), ("int8", None)])
@pytest.mark.parametrize("head", ["contextual", "lookup"])
def test_a_folder_that_was_moved_encodes_as_the_towers_outside(frozen, tmp_path, head, storage, near):
    outside = LexLIP.from_pretrained(frozen.folder(head, None), trust_sources=True)
    moved = shutil.copytree(frozen.folder(head, storage), tmp_path / "elsewhere")
    model = LexLIP.from_pretrained(moved)
    for encode in ("encode_image", "encode_text"):
        given = images(frozen) if encode == "encode_image" else TEXTS
        found, wanted = (getattr(one, encode)(given) for one in (model, outside))
        if storage == "int8":  # of towers with random weights, whose features hang on every bit
            assert ((found * wanted).sum(1) > 0.95).all()
        else:
            assert (found - wanted).abs().max() < near
    assert has_table(moved) == (head == "lookup")
    if head == "contextual" and storage != "int8":
        found, wanted = (m.encode_text(TEXTS, head="dense") for m in (model, outside))
        assert found.shape == (3, 12) and (found - wanted).abs().max() < near


def test_vectors_are_those_of_the_cache(frozen):
    model = LexLIP.from_pretrained(frozen.folder("contextual"))
    split = FeatureStore(frozen.features).split("train")
    paths = [frozen.table.parent / f"{id.removeprefix('box')}.png" for id in split.image_ids[:3]]
    with torch.no_grad():
        wanted = model.vectors_of_features("image", {"image": split.images([0, 1, 2])}, "lexicon")
    found = model.encode_image(paths, normalize=False)
    assert (found - wanted).abs().max() < 5e-3 and wanted.any()
    assert np.all([len(row) > 0 for row in model.lexicon(found)])


def test_a_tower_that_was_changed_is_refused(frozen, tmp_path):
    for storage, told in (("full", "image tower .* is not the one"), (None, "image tower .* is not the one")):
        folder = shutil.copytree(frozen.folder("lookup", storage), tmp_path / str(storage))
        towers = shutil.copytree(frozen.root / "towers" / "image", tmp_path / f"tower_{storage}")
        file = folder / "image_tower" / "model.safetensors" if storage else towers / "model.safetensors"
        state = load_file(file)
        state["conv_stem.weight"] += 0.1
        save_file(state, file)
        if storage is None:
            config = json.loads((folder / "config.json").read_text())
            config["image_tower"] = f"timm:{towers}#mean"
            (folder / "config.json").write_text(json.dumps(config))
        model = LexLIP.from_pretrained(folder, trust_sources=storage is None)
        with pytest.raises(CheckpointError, match=told):
            model.encode_image(images(frozen))


def test_towers_elsewhere_need_trust(frozen):
    model = LexLIP.from_pretrained(frozen.folder("contextual", None))
    with pytest.raises(UserError, match="trust_sources=True"):
        model.encode_image(images(frozen))


def test_what_such_a_folder_is_not(frozen, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="lexicon head"):
        DenseLIP.from_pretrained(frozen.folder("contextual"))
    with pytest.raises(EncodingError, match="takes texts, not token ids"):
        LexLIP.from_pretrained(frozen.folder("contextual")).encode_text(
            torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64)
        )


def test_encode_index_and_search_take_it(frozen, tmp_path, capsys):
    model = str(frozen.folder("lookup"))
    assert main(["encode", "--model", model, "--images", str(frozen.table.parent), "--out", str(tmp_path / "v")]) == 0
    assert main(["index", "build", str(tmp_path / "index"), str(tmp_path / "v")]) == 0
    capsys.readouterr()
    assert main(["search", "a red box", "--index", str(tmp_path / "index"), "--model", model, "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
