"""Steps without a Trainer, and whole runs."""

from types import SimpleNamespace

import pytest
import torch

from lexlip.train.config import base
from lexlip.train.config import named as named_configs


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


@pytest.fixture
def start(make_keys, tiny_data, tmp_path):
    """Runs a phase on the tiny data set; gives its result, its keys and its folder."""
    pytest.importorskip("sacred")
    from lexlip.train.main import make_experiment, plain

    def run(phase, named, **changes):
        keys = make_keys(
            data_root=str(tiny_data["root"]), tokenizer=tiny_data["tokenizer"], vocab_size=tiny_data["words"],
            log_dir=str(tmp_path / "log"), batch_size=4, per_gpu_batchsize=2, queue_size=8, learning_rate=1e-2,
        )  # fmt: skip
        usual = base()
        for name in named:
            usual.update(named_configs()[name])
        # What the named configs say stays.
        stated = (
            "head", "training_mode", "loss_names", "exp_name", "test_only", "train_transform_keys", "long_captions",
            "sub_captions", "corner_tokens", "sentence_sep",
        )  # fmt: skip
        updates = {key: value for key, value in keys.items() if value != usual[key] and key not in stated}
        updates.update(changes)
        done = make_experiment(phase.__name__, phase).run(named_configs=named, config_updates=updates)
        keys = plain(dict(done.config))
        version = keys["version"] if keys["version"] is not None else 0
        folder = tmp_path / "log" / f"{keys['exp_name']}_seed{keys['seed']}" / f"version_{version}"
        return SimpleNamespace(result=done.result, keys=keys, folder=folder)

    return run
