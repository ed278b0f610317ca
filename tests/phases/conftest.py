"""Steps without a Trainer."""

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
        monkeypatch.setattr(module, "optimizers", lambda: optimizer)
        monkeypatch.setattr(module, "lr_schedulers", lambda: _Schedule())
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        monkeypatch.setattr(module, "log", lambda name, value, **_: module.logged.update({name: float(value)}))
        monkeypatch.setattr(
            module, "log_dict", lambda values, **_: module.logged.update({k: float(v) for k, v in values.items()})
        )
        return module

    return attach


@pytest.fixture
def gradients_of():
    """Every parameter's gradient by name."""
    return lambda module: {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
