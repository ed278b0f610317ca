"""Which run directory and which checkpoint a run takes, and what becomes of the others."""

import json
import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from runs import EVALUATE, PHASE1, PHASE2, WHOLE, Refused, checkpoint_of, names

from lexlip.train import optim, run_dir
from lexlip.train.callbacks.interruption import REQUEUE, Stopped
from lexlip.train.config import Config
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


def test_a_run_of_its_own_does_not_write_among_anothers_checkpoints(start, own_copy):
    folder = own_copy(Phase1Module, PHASE1)
    before = names(folder)
    with pytest.raises(Refused, match="holds an earlier run's checkpoints; resume_from=auto"):
        start(Phase1Module, PHASE1, version=0, max_steps=1)
    assert names(folder) == before


def test_going_back_to_an_earlier_step_sets_the_later_ones_aside(start, own_copy):
    folder = own_copy(Phase1Module, PHASE1)
    early = folder / "checkpoints" / "step_00000002.ckpt"
    (folder / "checkpoints" / "step_00000010.ckpt.tmp").write_bytes(b"half")
    how = {**WHOLE, "checkpoint_steps": 1, "keep_checkpoints": 2, "max_steps": 4}
    start(Phase1Module, PHASE1, version=0, resume_from=str(early), **how)
    assert names(folder, "step_") == sorted(
        [f"step_0000000{n}.ckpt" for n in (3, 4)] + [f"step_0000000{n}.ckpt.aside" for n in range(3, 10)]
    )
    assert checkpoint_of(folder)["global_step"] == 4


def test_more_damaged_checkpoints_than_are_kept_cost_no_good_one(start, own_copy):
    folder = own_copy(Phase2Module, PHASE2)
    for step in (7, 8, 9):
        (folder / "checkpoints" / f"step_{step:08d}.ckpt").write_bytes(b"damaged")
    how = {**WHOLE, "checkpoint_steps": 1, "keep_checkpoints": 1}
    assert start(Phase2Module, PHASE2, resume_from="auto", **how).folder == folder
    assert [name for name in names(folder, "step_") if name.endswith(".ckpt")] == ["step_00000009.ckpt"]
    assert checkpoint_of(folder)["global_step"] == 9


def test_a_restart_finds_its_own_folder_and_nobody_elses(monkeypatch, start, own_copy, whole_run, tmp_path):
    own_copy(Phase1Module, PHASE1)
    keys = {**whole_run(Phase1Module, PHASE1).keys, "version": None, "log_dir": str(tmp_path / "log")}
    config = Config.checked(keys)
    monkeypatch.setenv("LEXLIP_JOB", "launch-a")
    folder, resume = run_dir.choose(config)
    assert (folder.name, resume) == ("version_1", None)
    run_dir.forget()
    assert run_dir.choose(config) == (folder, None)  # started again: the same folder, nothing of version_0
    run_dir.forget()
    monkeypatch.setenv("LEXLIP_JOB", "launch-b")
    assert run_dir.choose(config)[0].name == "version_2"
    run_dir.forget()
    assert run_dir.choose(config.changed(fast_dev_run=True))[0].name == "version_2"


def test_an_evaluation_takes_the_weights_that_it_is_given(start, own_copy):
    folder = own_copy(Phase1Module, PHASE1)
    last, first = (str(folder / "checkpoints" / name) for name in ("last.ckpt", "step_00000001.ckpt"))
    one = start(Phase2Module, EVALUATE, load_path=last)
    two = start(Phase2Module, EVALUATE, resume_from=last)
    three = start(Phase2Module, EVALUATE, load_path=last, resume_from="auto")
    assert one.result == two.result == three.result != start(Phase2Module, EVALUATE, load_path=first).result


def test_validation_that_a_kill_prevented_is_made_up_for(start, whole_run, monkeypatch):
    """Once in the middle, after step 4, once at the end."""
    best = json.loads((whole_run(Phase2Module, PHASE2).folder / "checkpoints" / "best.json").read_text())
    validate = Phase2Module.validation_step
    for version, at in ((1, 4), (2, 9)):

        def validation_step(self, *args, at=at, **kwargs):
            if self.step_now == at:
                raise RuntimeError("power cut")
            validate(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Phase2Module, "validation_step", validation_step)
            with pytest.raises(RuntimeError, match="power cut"):
                start(Phase2Module, PHASE2, version=version, **WHOLE)
        seen = []
        with monkeypatch.context() as patch:

            def on_end(self, seen=seen, end=Phase2Module.on_validation_epoch_end):
                seen.append(self.step_now)
                end(self)

            patch.setattr(Phase2Module, "on_validation_epoch_end", on_end)
            resumed = start(Phase2Module, PHASE2, version=version, resume_from="auto", **WHOLE)
        assert seen == ([4, 8, 9] if at == 4 else [9])
        assert json.loads((resumed.folder / "checkpoints" / "best.json").read_text()) == best
        assert checkpoint_of(resumed.folder, "best.ckpt")["global_step"] == best["step"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE), (signal.SIGINT, 130)]
)
def test_a_signal_ends_an_evaluation_with_its_own_status(start, whole_run, monkeypatch, tmp_path, signum, code):
    load = str(whole_run(Phase1Module, PHASE1).folder / "checkpoints" / "last.ckpt")
    step = Phase2Module.test_step

    def test_step(self, *args, **kwargs):
        os.kill(os.getpid(), signum)
        step(self, *args, **kwargs)

    monkeypatch.setattr(Phase2Module, "test_step", test_step)
    file = tmp_path / "metrics.json"
    with pytest.raises(Stopped) as stopped:
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
    plain = lambda module, config: torch.optim.AdamW(optim.parameter_groups(module, 0.0), lr=0.01)
    monkeypatch.setattr("lexlip.train.module.make_optimizer", plain)
    with pytest.raises(Refused, match="overflowed in 20 steps in a row"):
        start(Phase1Module, PHASE1, max_steps=300, get_recall_metric=False, per_gpu_batchsize=4)
    assert max(made) == 20
