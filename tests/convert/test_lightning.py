"""Checkpoints as pytorch-lightning 1.2 to 2 wrote them: read where they are harmless, refused where they are not."""

import os
import sys
from types import ModuleType

import official_tiny
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lexlip.cli import main
from lexlip.convert.official import import_official
from lexlip.errors import CheckpointError
from lexlip.models.weights import model_weights, read


class Hostile:
    """Pickled, it asks its reader to make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def callback(monkeypatch, module, name):
    """A class of a Lightning release that is not installed, where pickle finds it by its name."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
    kind = type(name, (), {"__module__": module})
    monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
    return kind


def test_a_checkpoint_of_the_official_trainer_is_imported(tmp_path):
    state = official_tiny.weights()
    torch.save(official_tiny.checkpoint(state, ModelCheckpoint), tmp_path / "full.ckpt")
    torch.save({"state_dict": state, "hyper_parameters": {"config": {"image_size": 32}}}, tmp_path / "bare.ckpt")
    imported, bare = (import_official(tmp_path / name, text_heads=2) for name in ("full.ckpt", "bare.ckpt"))
    assert imported.phase == 1 and imported.model.config.max_text_len == 8
    assert imported.model.state_dict().keys() == bare.model.state_dict().keys()
    for name, value in bare.model.state_dict().items():
        assert torch.equal(imported.model.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="convert it once with `lexlip import-official"):
        model_weights(tmp_path / "full.ckpt")


@pytest.mark.parametrize("number", [1, 2])
def test_a_golden_checkpoint_with_callbacks_gives_the_same_arrays(number, shared, tmp_path):
    path = shared("golden", f"Phase{number}_tiny_11.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**official_tiny.checkpoint({}, ModelCheckpoint), **content}, tmp_path / "real.ckpt")
    imported, plain = (import_official(file, text_heads=4) for file in (tmp_path / "real.ckpt", path))
    for own, same in ((imported.model.state_dict(), plain.model.state_dict()), (imported.state, plain.state)):
        assert own.keys() == same.keys() and all(torch.equal(own[name], same[name]) for name in own)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
        ("pytorch_lightning.callbacks.gpu_stats_monitor", "GPUStatsMonitor"),
        ("pytorch_lightning.callbacks.progress", "ProgressBar"),
        ("lightning.pytorch.callbacks.timer", "Timer"),
    ],
)
def test_callbacks_of_every_release_are_names_only(monkeypatch, tmp_path, module, name):
    kind = callback(monkeypatch, module, name)
    torch.save({"callbacks": {kind: {"best": 1.0}}}, tmp_path / "a.ckpt")
    torch.save({"callbacks": {kind: kind()}}, tmp_path / "object.ckpt")
    monkeypatch.undo()
    (key,) = read(tmp_path / "a.ckpt")["callbacks"]
    assert key.__name__ == name and key.__module__ == "lexlip.models.lightning_names"
    with pytest.raises(CheckpointError, match="would run code"):  # an object of the class is more than its name
        read(tmp_path / "object.ckpt")


def test_keys_by_name_of_later_releases_and_dicts_of_attributes_are_read(monkeypatch, tmp_path):
    kind = callback(monkeypatch, "pytorch_lightning.utilities.parsing", "AttributeDict")
    attributes = type("AttributeDict", (dict,), {"__module__": kind.__module__})
    monkeypatch.setattr(sys.modules[kind.__module__], "AttributeDict", attributes)
    name = "ModelCheckpoint{'monitor': None, 'mode': 'min'}"
    torch.save({"callbacks": {name: {}}, "hyper_parameters": attributes(config={"seed": 1})}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    content = read(tmp_path / "a.ckpt")
    assert content["hyper_parameters"] == {"config": {"seed": 1}} and type(content["hyper_parameters"]) is dict


@pytest.mark.parametrize("entry", ["callbacks", "hyper_parameters", "optimizer_states", "lr_schedulers", "state_dict"])
@pytest.mark.parametrize("as_key", [False, True], ids=["object", "class"])
def test_code_in_any_entry_is_refused_and_does_not_run(entry, as_key, tmp_path, capsys):
    content = official_tiny.checkpoint(official_tiny.weights(), ModelCheckpoint)
    part = content[entry][0] if isinstance(content[entry], list) else content[entry]
    part[Hostile if as_key else "x"] = 1 if as_key else Hostile(tmp_path / "made")
    torch.save(content, tmp_path / "hostile.ckpt")
    for command in ("import-official", "import-lotlip", "export"):
        assert main([command, str(tmp_path / "hostile.ckpt"), str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "hostile.ckpt" in line and "would run code" in line and ("Hostile" if as_key else "mkdir") in line
    with pytest.raises(CheckpointError, match="would run code"):
        model_weights(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "made").exists() and not (tmp_path / "out").exists()
