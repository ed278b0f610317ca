"""What an earlier version wrote is read unchanged: checkpoints that are resumed, a model folder, an index."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lexlip import LexLIP
from lexlip.index import Index
from Phase2.module import Phase2Module

HERE = Path(__file__).resolve().parent
FILES = HERE / "fixtures" / "before_rooms"  # written by fixtures/make.py


@pytest.fixture(scope="module")
def make():
    """The script that wrote the files."""
    spec = importlib.util.spec_from_file_location("make", HERE / "fixtures" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(make, tmp_path_factory):
    """The data set that the files were made of; gives its folder and the size of the vocabulary."""
    from lexlip_data.convert.vocabulary import build_tokenizer

    root = tmp_path_factory.mktemp("older")
    return root, build_tokenizer(make.tiny.write_tables(root), root / "tokenizer", vocab_size=120)


@pytest.mark.parametrize("phase", ["Phase1", "Phase2"])
def test_a_run_goes_on_with_the_losses_that_it_had(make, data, phase):
    pytest.importorskip("sacred")
    root, words = data
    given = {**make.settings(root, words), "resume_from": FILES / f"{phase}.ckpt", "version": f"new_{phase}"}
    command = [sys.executable, f"{phase}/run.py", "with", make.NAMED[phase], f"exp_name={phase}"]
    command += [f"{key}={value}" for key, value in given.items()]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(root / "log" / f"{phase}_seed1" / f"new_{phase}" / "metrics.csv") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    wanted = json.loads((FILES / f"{phase}.json").read_text())
    assert losses == pytest.approx(wanted[make.KEPT :], rel=1e-4)


def test_a_model_folder_gives_the_vectors_that_it_gave(make, data):
    model, wanted = LexLIP.from_pretrained(FILES / "model"), np.load(FILES / "vectors.npz")
    text, image = model.encode_text([make.QUERY]), model.encode_image([data[0] / "tiny" / "test_0.png"])
    torch.testing.assert_close(text, torch.from_numpy(wanted["text"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image, torch.from_numpy(wanted["image"]), rtol=1e-4, atol=1e-5)


def test_a_phase_takes_up_its_own_parts():
    module = Phase2Module.from_model(FILES / "model", batch_size=4)
    state = torch.load(FILES / "Phase2.ckpt", weights_only=True)["state_dict"]
    for name in ("text_ring.keys", "image_ring.ids", "twin.module.text_head.decoder.weight"):
        assert torch.equal(module.state_dict()[name], state[name]), name


def test_an_index_gives_the_answers_that_it_gave(make):
    hits = Index.open(FILES / "tiny.index", model=LexLIP.from_pretrained(FILES / "model")).search(make.QUERY, k=4)
    wanted = json.loads((FILES / "hits.json").read_text())
    assert [hit.id for hit in hits] == [id for id, _ in wanted]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], rel=1e-4)
