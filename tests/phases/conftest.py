"""Steps without a Trainer, and whole runs."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


class _Schedule:
    def step(self):
        pass

    def get_last_lr(self):
        return [0.0]


@pytest.fixture
def without_trainer(monkeypatch):
    """Lets a module's `training_step` run alone; gives the module a dict `logged`."""

    def attach(module, learning_rate: float = 0.0):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=learning_rate)
        module.logged = {}
        data = SimpleNamespace(steps_per_epoch=4, n_pairs=16)
        module.trainer = SimpleNamespace(strategy=SimpleNamespace(model=module), global_step=0, datamodule=data)
        step = optimizer.step
        # As the Trainer does before each step.
        monkeypatch.setattr(optimizer, "step", lambda: (module.on_before_optimizer_step(optimizer), step()))
        monkeypatch.setattr(module, "optimizers", lambda: optimizer)
        module.schedule = _Schedule()
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        monkeypatch.setattr(module, "log", lambda name, value, **_: module.logged.update({name: float(value)}))
        monkeypatch.setattr(
            module, "log_dict", lambda values, **_: module.logged.update({k: float(v) for k, v in values.items()})
        )
        return module

    return attach


@pytest.fixture
def contrastive_by_loops():
    """Symmetric InfoNCE of normalised vectors with plain loops; rows of the same image are no negatives."""

    def loss(text, image, ids, scale):
        total, rows = 0, len(text)
        for one, other in ((text, image), (image, text)):
            for i in range(rows):
                kept = [j for j in range(rows) if j == i or ids[j] != ids[i]]
                scores = torch.stack([one[i] @ other[j] for j in kept]) * scale
                total = total - torch.log_softmax(scores, 0)[kept.index(i)]
        return total / (2 * rows)

    return loss


@pytest.fixture
def gradients_of():
    """Every parameter's gradient by name."""
    return lambda module: {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.fixture
def start(tiny_data, tmp_path):
    """Runs a phase on the tiny data set; gives its result, its keys and its run directory, under log/ of `tmp_path`."""
    from runs import run_phase

    return partial(run_phase, tiny_data, tmp_path / "log")


@pytest.fixture(scope="session")
def whole_run(tiny_data, tmp_path_factory):
    """Runs of 9 steps that keep a checkpoint of each, made once for all tests, which only read them.

    Beside what `start` gives, `samples` are the captions of each step.
    """
    from runs import WHOLE, captions_noted, run_phase

    made = {}

    def run(phase: type, named: list[str]) -> SimpleNamespace:
        if str(named) not in made:
            with captions_noted(phase) as samples:
                folder = tmp_path_factory.mktemp("whole")
                done = run_phase(tiny_data, folder, phase, named, version=0, checkpoint_steps=1, **WHOLE)
            done.samples = samples
            made[str(named)] = done
        return made[str(named)]

    return run


@pytest.fixture
def own_copy(whole_run, tmp_path):
    """Copies a `whole_run` to where `start` runs, as its version 0; gives the run directory."""

    def copy(phase: type, named: list[str]) -> Path:
        folder = whole_run(phase, named).folder
        return Path(shutil.copytree(folder, tmp_path / "log" / folder.parent.name / folder.name))

    return copy
