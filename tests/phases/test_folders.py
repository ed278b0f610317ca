"""Which folder and which checkpoint a run takes, and what becomes of the others."""

import json
import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

sacred = pytest.importorskip("sacred")

from lexlip.train import optim, run_dir  # noqa: E402
from lexlip.train.callbacks.interruption import REQUEUE, Stopped  # noqa: E402
from lexlip.train.config import Config  # noqa: E402
from lexlip.train.main import Refused  # noqa: E402
from Phase1.module import Phase1Module  # noqa: E402
from Phase2.module import Phase2Module  # noqa: E402

PHASE1 = ["task_Text_MAE_Contrastive_train", "text_bert", "vit_randaug"]
PHASE2 = ["task_contrastive_train", "text_bert"]
EVALUATE = ["task_IRTR_evaluate", "text_bert"]
STEPS = {"checkpoint_steps": 1, "keep_checkpoints": 2}


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def checkpoint_of(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)


def test_a_run_of_its_own_does_not_write_among_anothers_checkpoints(start):
    first = start(Phase1Module, PHASE1, version=0, max_steps=2)
    before = names(first.folder)
    with pytest.raises(Refused, match="holds an earlier run's checkpoints; resume_from=auto"):
        start(Phase1Module, PHASE1, version=0, max_steps=1)
    assert names(first.folder) == before


def test_going_back_to_an_earlier_step_sets_the_later_ones_aside(start):
    how = {"version": 0, "max_steps": 6, **STEPS, "keep_checkpoints": 9}
    first = start(Phase1Module, PHASE1, **how)
    early = first.folder / "checkpoints" / "step_00000002.ckpt"
    (first.folder / "checkpoints" / "step_00000007.ckpt.tmp").write_bytes(b"half")
    start(Phase1Module, PHASE1, **{**how, "keep_checkpoints": 2, "max_steps": 4}, resume_from=str(early))
    steps = [name for name in names(first.folder) if name.startswith("step_")]
    assert steps == [
        "step_00000003.ckpt", "step_00000003.ckpt.aside", "step_00000004.ckpt", "step_00000004.ckpt.aside",
        "step_00000005.ckpt.aside", "step_00000006.ckpt.aside",
    ]  # fmt: skip
    assert checkpoint_of(first.folder)["global_step"] == 4


def test_more_damaged_checkpoints_than_are_kept_cost_no_good_one(start):
    how = {"max_steps": 8, **STEPS, "keep_checkpoints": 9}
    first = start(Phase2Module, PHASE2, **how)
    for step in (6, 7, 8):
        (first.folder / "checkpoints" / f"step_{step:08d}.ckpt").write_bytes(b"damaged")
    resumed = start(Phase2Module, PHASE2, **{**how, "keep_checkpoints": 1}, resume_from="auto")
    assert resumed.folder == first.folder
    assert [n for n in names(first.folder) if n.endswith(".ckpt") and "step" in n] == ["step_00000008.ckpt"]
    assert checkpoint_of(first.folder)["global_step"] == 8


def test_a_restart_finds_its_own_folder_and_nobody_elses(make_config, tmp_path, monkeypatch, start):
    first = start(Phase1Module, PHASE1, max_steps=1)
    config = Config.checked({**first.keys, "version": None})
    monkeypatch.setenv("LEXLIP_JOB", "launch-a")
    folder, resume = run_dir.settle(config)
    assert (folder.name, resume) == ("version_1", None)
    run_dir.forget()
    assert run_dir.settle(config) == (folder, None)  # started again: the same folder, nothing of version_0
    run_dir.forget()
    monkeypatch.setenv("LEXLIP_JOB", "launch-b")
    assert run_dir.settle(config)[0].name == "version_2"
    run_dir.forget()
    assert run_dir.settle(config.changed(fast_dev_run=True))[0].name == "version_2"
    run_dir.forget()


def test_an_evaluation_takes_the_weights_that_it_is_given(start):
    trained = start(Phase1Module, PHASE1, version=0, max_steps=3)
    last = str(trained.folder / "checkpoints" / "last.ckpt")
    one = start(Phase2Module, EVALUATE, load_path=last)
    two = start(Phase2Module, EVALUATE, resume_from=last)
    three = start(Phase2Module, EVALUATE, load_path=last, resume_from="auto")
    assert one.result == two.result == three.result


def test_validation_that_a_kill_prevented_is_made_up_for(start, monkeypatch):
    """Once in the middle, after step 4, once at the end."""
    how = {"max_steps": 6, "drop_rate": 0.1}
    whole = start(Phase2Module, PHASE2, version=0, **how)
    best = json.loads((whole.folder / "checkpoints" / "best.json").read_text())
    validate = Phase2Module.validation_step
    for version, at in ((1, 4), (2, 6)):

        def validation_step(self, *args, at=at, **kwargs):
            if self.step_now == at:
                raise RuntimeError("power cut")
            validate(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Phase2Module, "validation_step", validation_step)
            with pytest.raises(RuntimeError, match="power cut"):
                start(Phase2Module, PHASE2, version=version, **how)
        seen = []
        with monkeypatch.context() as patch:

            def on_end(self, seen=seen, end=Phase2Module.on_validation_epoch_end):
                seen.append(self.step_now)
                end(self)

            patch.setattr(Phase2Module, "on_validation_epoch_end", on_end)
            resumed = start(Phase2Module, PHASE2, version=version, resume_from="auto", **how)
        assert seen == ([4, 6] if at == 4 else [6])
        assert json.loads((resumed.folder / "checkpoints" / "best.json").read_text()) == best
        assert checkpoint_of(resumed.folder, "best.ckpt")["global_step"] == best["step"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE), (signal.SIGINT, 130)]
)
def test_a_signal_ends_an_evaluation_with_its_own_status(start, monkeypatch, tmp_path, signum, code):
    trained = start(Phase1Module, PHASE1, version=0, max_steps=1)
    step = Phase2Module.test_step

    def test_step(self, *args, **kwargs):
        os.kill(os.getpid(), signum)
        step(self, *args, **kwargs)

    monkeypatch.setattr(Phase2Module, "test_step", test_step)
    file = tmp_path / "metrics.json"
    with pytest.raises(Stopped) as stopped:
        load = str(trained.folder / "checkpoints" / "last.ckpt")
        start(Phase2Module, EVALUATE, load_path=load, metrics_file=str(file))
    assert stopped.value.code == code and not file.exists()


def test_a_gradient_that_overflows_whatever_the_scale_ends_the_run(start, monkeypatch):
    """Loss scaling on the CPU; every gradient is NaN, every loss finite."""
    trainer, backward, made = pl.Trainer, Phase1Module._backward, []

    def with_scaler(precision, plugins, **how):
        mixed = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        return trainer(**how, plugins=[*plugins, mixed])

    def spoilt(self, loss, last):
        backward(self, loss, last)
        next(p for p in self.parameters() if p.grad is not None).grad.fill_(float("nan"))
        made.append(self.batches_seen)

    monkeypatch.setattr("lexlip.train.trainer.pl.Trainer", with_scaler)
    monkeypatch.setattr(Phase1Module, "_backward", spoilt)
    # As on a GPU: a fused optimiser would unscale by itself.
    plain = lambda module, config: torch.optim.AdamW(optim.parameter_groups(module, 0.0), lr=0.01)  # noqa: E731
    monkeypatch.setattr("lexlip.train.module.make_optimizer", plain)
    with pytest.raises(Refused, match="overflowed in 20 steps in a row"):
        start(Phase1Module, PHASE1, max_steps=300, get_recall_metric=False, per_gpu_batchsize=4)
    assert max(made) == 20


def test_losses_are_averaged_in_an_order_that_all_processes_share():
    from lexlip.train.module import _mean_over_ranks

    one = _mean_over_ranks({"b": torch.tensor(2.0), "a": torch.tensor(1.0)})
    assert list(one.items()) == [("a", 1.0), ("b", 2.0)]
