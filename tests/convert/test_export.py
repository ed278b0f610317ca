"""Checkpoints as model folders: weights, tokenizer, and a phase's own parts where they are wanted."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.train.build import build_model
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


@pytest.fixture
def checkpoint(make_config, tiny_data, livelier, tmp_path):
    """Writes a checkpoint of a phase as a run does; keyword arguments add to its content."""

    def write(kind, mode, **content):
        config = make_config(vocab_size=tiny_data["words"], training_mode=mode)
        module = kind(config, livelier(build_model(LexLIP, config)))
        saved = {"config": config.as_dict(), "model": dataclasses.asdict(module.model.config)}
        path = tmp_path / "run.ckpt"
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": saved, **content}, path)
        return module, path

    return write


def test_weights_and_tokenizer_are_the_checkpoints(checkpoint, tiny_data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    files = {file.name: file.read_text() for file in (tmp_path / "tokenizer").iterdir()}
    module, path = checkpoint(Phase1Module, "con", tokenizer=files)
    assert main(["export", str(path), str(tmp_path / "out")]) == 0
    model = LexLIP.from_pretrained(tmp_path / "out")
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    for name, value in module.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not list((tmp_path / "out").glob("phase*"))


@pytest.mark.parametrize("says", [True, False], ids=["it_says_its_phase", "an_older_one"])
@pytest.mark.parametrize("phase, mode", [(Phase1Module, "both"), (Phase1Module, "bottle"), (Phase2Module, "con")])
def test_own_parts_are_kept_where_they_are_wanted(checkpoint, tiny_data, tmp_path, phase, mode, says):
    name = phase.__name__.removesuffix("Module")
    module, path = checkpoint(phase, mode, **({"phase": name} if says else {}))
    command = ["export", str(path), str(tmp_path / "out"), "--tokenizer", tiny_data["tokenizer"]]
    assert main(command) == 0 and not list((tmp_path / "out").glob("phase*"))
    assert main([*command, "--phase-state"]) == 0
    own = {name: value for name, value in module.state_dict().items() if not name.startswith("model.")}
    (file,) = (tmp_path / "out").glob("phase*")
    assert file.name == f"{name.lower()}.safetensors"
    kept = load_file(file)
    assert own and kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)


def test_what_a_checkpoint_says_counts(checkpoint, tiny_data, tmp_path):
    _, path = checkpoint(Phase2Module, "con", phase="Phase1")
    words = ["export", str(path), str(tmp_path / "out"), "--tokenizer", tiny_data["tokenizer"], "--phase-state"]
    assert main(words) == 0
    assert [file.name for file in (tmp_path / "out").glob("phase*")] == ["phase1.safetensors"]


def test_what_is_missing_is_named(checkpoint, tmp_path, capsys):
    _, path = checkpoint(Phase1Module, "con")
    assert main(["export", str(path), str(tmp_path / "out")]) == 2
    assert "run.ckpt holds no tokenizer; name one with --tokenizer" in capsys.readouterr().err
    content = torch.load(path, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, path)
    assert main(["export", str(path), str(tmp_path / "out")]) == 2
    assert "run.ckpt does not say how its model is built" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
