"""Stopped, killed, out of disk, not finite: what is saved, and that a run goes on as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import DENSE, LONG, PHASE1, PHASE2, WHOLE, Refused, captions_noted, checkpoint_of, command, names

from lexlip.train.callbacks.interruption import REQUEUE, Stopped
from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


def assert_identical(one, two):
    """Weights, momentum encoder, queues, optimiser and schedule, bit for bit."""
    assert one["global_step"] == two["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    states, others = (content["optimizer_states"][0]["state"] for content in (one, two))
    for index, state in states.items():
        for name, value in state.items():
            assert torch.equal(value, others[index][name]), (index, name)
    assert one["lr_schedulers"] == two["lr_schedulers"]
    assert one["batches_seen"] == two["batches_seen"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("phase", "named"),
    [(Phase1Module, PHASE1), (Phase2Module, PHASE2), (DenseModule, DENSE), (Phase1Module, LONG)],
    ids=["one", "two", "dense", "long"],
)
def test_from_every_step_a_run_goes_on_bit_for_bit(start, whole_run, phase, named, workers):
    """4 steps an epoch, validation after each epoch, dropout on. The whole run had no loader process."""
    whole = whole_run(phase, named)
    assert sorted(sum(whole.samples[:4], [])) == sorted((f"train{i}", n) for i in range(8) for n in range(2))
    assert len(names(whole.folder, "step_")) == 9
    end = checkpoint_of(whole.folder)
    for step in range(1, 9) if not workers else (2, 4, 7):
        with captions_noted(phase) as rest:
            file = str(whole.folder / "checkpoints" / f"step_{step:08d}.ckpt")
            resumed = start(phase, named, version=step, resume_from=file, num_workers=workers, **WHOLE)
        assert rest == whole.samples[step:], step
        assert_identical(end, checkpoint_of(resumed.folder))


def test_resuming_after_whole_epochs_goes_on_with_the_next(start):
    with captions_noted(Phase1Module) as samples:
        first = start(Phase1Module, PHASE1, version=0, max_epoch=1)
    assert len(samples) == 4
    with captions_noted(Phase1Module) as more:
        last = str(first.folder / "checkpoints" / "last.ckpt")
        second = start(Phase1Module, PHASE1, version=1, max_epoch=2, resume_from=last)
    assert len(more) == 4
    assert sorted(sum(more, [])) == sorted(sum(samples, [])) and more != samples  # all pairs again, in another order
    assert checkpoint_of(second.folder)["global_step"] == 8


def test_the_newest_are_kept_and_last_and_best_are_names_of_them(start):
    done = start(Phase2Module, PHASE2, version=0, max_steps=6, checkpoint_steps=2, keep_checkpoints=2)
    assert names(done.folder) == ["best.ckpt", "best.json", "last.ckpt", "step_00000004.ckpt", "step_00000006.ckpt"]
    folder = done.folder / "checkpoints"
    assert (folder / "last.ckpt").samefile(folder / "step_00000006.ckpt")
    best = json.loads((folder / "best.json").read_text())
    assert checkpoint_of(done.folder, "best.ckpt")["global_step"] == best["step"] in (4, 6)
    assert 0 <= best["val/rsum"] <= 600


def test_the_clock_asks_for_checkpoints_too(start):
    done = start(Phase1Module, PHASE1, version=0, max_steps=3, checkpoint_minutes=1e-9, keep_checkpoints=5)
    assert names(done.folder, "step_") == [f"step_{n:08d}.ckpt" for n in (1, 2, 3)]
    done = start(Phase1Module, PHASE1, version=1, max_steps=3, checkpoint_minutes=0, keep_checkpoints=5)
    assert names(done.folder, "step_") == ["step_00000003.ckpt"]


def test_auto_takes_the_newest_whole_checkpoint_and_says_what_it_passes_over(start, own_copy, whole_run, caplog):
    folder = own_copy(Phase2Module, PHASE2) / "checkpoints"
    cut = folder / "step_00000009.ckpt"
    cut.write_bytes(cut.read_bytes()[:-100])
    flipped = bytearray((folder / "step_00000008.ckpt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "step_00000008.ckpt").write_bytes(flipped)
    (folder / "step_00000007.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, folder / "step_00000006.ckpt")
    resumed = start(Phase2Module, PHASE2, resume_from="auto", **WHOLE)
    assert resumed.folder == folder.parent and [path.name for path in folder.parents[1].iterdir()] == ["version_0"]
    passed = [line for line in caplog.messages if "passed over" in line]
    assert [f"step_0000000{n}" in line for n, line in zip((9, 8, 7, 6), passed, strict=True)] == [True] * 4
    assert "checksum" in passed[1] and "no optimizer_states" in passed[3]
    assert_identical(checkpoint_of(whole_run(Phase2Module, PHASE2).folder), checkpoint_of(resumed.folder))
    assert (resumed.folder / "metrics_0.csv").is_file()  # the first attempt's log is still there


def test_auto_without_anything_starts_afresh_also_from_load_path(start):
    one = start(Phase1Module, PHASE1, version=0, max_steps=1, resume_from="auto")
    assert checkpoint_of(one.folder)["global_step"] == 1
    last = str(one.folder / "checkpoints" / "last.ckpt")
    two = start(Phase2Module, PHASE2, max_steps=2, resume_from="auto", load_path=last)
    again = start(Phase2Module, PHASE2, max_steps=2, resume_from="auto", load_path=last)
    assert two.folder == again.folder
    assert checkpoint_of(two.folder)["global_step"] == 2


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_rest_is_bit_for_bit(start, whole_run, tmp_path, monkeypatch, signum):
    step = Phase2Module.training_step

    def training_step(self, batch, index):
        if self.batches_seen == 4:
            os.kill(os.getpid(), signum)
        step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Phase2Module, "training_step", training_step)
        with pytest.raises(Stopped) as stopped:
            start(Phase2Module, PHASE2, version=1, **WHOLE)
    assert stopped.value.code == (130 if signum == signal.SIGINT else REQUEUE)
    folder = tmp_path / "log" / "Contrastive_Train_seed1" / "version_1"
    assert json.loads((folder / "sacred" / "1" / "run.json").read_text())["status"] == "INTERRUPTED"
    assert 4 < checkpoint_of(folder)["global_step"] <= 6
    resumed = start(Phase2Module, PHASE2, version=1, resume_from="auto", **WHOLE)
    assert resumed.folder == folder
    assert_identical(checkpoint_of(whole_run(Phase2Module, PHASE2).folder), checkpoint_of(folder))


def test_a_signal_in_validation_leaves_at_once(start, monkeypatch):
    validate = Phase2Module.validation_step

    def validation_step(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        validate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Phase2Module, "validation_step", validation_step)
        with pytest.raises(Stopped):
            start(Phase2Module, PHASE2, version=0, max_steps=6)
    done = start(Phase2Module, PHASE2, version=0, max_steps=6, resume_from="auto")
    assert checkpoint_of(done.folder)["global_step"] == 6


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(start, monkeypatch, caplog):
    """The second write fails halfway; the third and the fourth succeed."""
    save, count = torch.save, []

    def failing(content, file):
        count.append(1)
        if len(count) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr("lexlip.train.checkpoint.torch.save", failing)
    done = start(Phase1Module, PHASE1, version=0, max_steps=4, checkpoint_steps=1, keep_checkpoints=9)
    assert names(done.folder, "step_") == [f"step_{n:08d}.ckpt" for n in (1, 3, 4)]
    (line,) = [line for line in caplog.messages if "could not be written" in line]
    assert "step_00000002.ckpt" in line and "No space left" in line


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_older_one(start, monkeypatch):
    save = torch.save

    def failing(content, file):
        if content["global_step"] == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        save(content, file)

    monkeypatch.setattr("lexlip.train.checkpoint.torch.save", failing)
    with pytest.raises(Refused, match="last checkpoint could not be written"):
        start(Phase1Module, PHASE1, version="full", max_steps=2, checkpoint_steps=1)
    monkeypatch.undo()
    done = start(Phase1Module, PHASE1, version="full", max_steps=2, resume_from="auto")
    assert checkpoint_of(done.folder)["global_step"] == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_during_a_checkpoint_leaves_the_older_one(start, whole_run, small_disk, monkeypatch):
    """At step 4 so little is left that only half a checkpoint fits; the run ends with a message, then goes on."""
    how = {**WHOLE, "version": 0, "checkpoint_steps": 1, "keep_checkpoints": 2, "log_dir": str(small_disk)}
    folder, save = small_disk / "Contrastive_Train_seed1" / "version_0", torch.save

    def filling(content, file):
        if content["global_step"] == 4:
            disk, done = os.statvfs(small_disk), folder / "checkpoints" / "step_00000003.ckpt"
            room = disk.f_bavail * disk.f_frsize
            (small_disk / "filler").write_bytes(b"0" * (room - done.stat().st_size // 2))
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr("lexlip.train.checkpoint.torch.save", filling)
        with pytest.raises(Refused, match="could not be written|no space left"):
            start(Phase2Module, PHASE2, **how)
    assert names(folder, "step_") == [f"step_0000000{n}.ckpt" for n in (2, 3)]
    assert checkpoint_of(folder)["global_step"] == 3
    (small_disk / "filler").unlink()
    start(Phase2Module, PHASE2, resume_from="auto", **how)
    assert_identical(checkpoint_of(whole_run(Phase2Module, PHASE2).folder), checkpoint_of(folder))


def test_losses_that_are_not_finite_stop_the_run_and_are_kept(start, monkeypatch):
    """Batch 2 alone is left out; batches 4 to 6 end the run, the weights are those of step 3."""
    losses = Phase1Module.batch_losses

    def batch_losses(self, vectors, batch, context):
        parts = losses(self, vectors, batch, context)
        if self.training and self.batches_seen in (2, 4, 5, 6):
            parts["contrastive_loss"] = parts["contrastive_loss"] * float("nan")
        return parts

    monkeypatch.setattr(Phase1Module, "batch_losses", batch_losses)
    how = {"version": 0, "max_steps": 9, "checkpoint_steps": 1, "keep_checkpoints": 9, "max_nonfinite_steps": 3}
    with pytest.raises(Refused, match="not finite in 3 steps in a row .*not_finite_00000006.json") as refused:
        start(Phase1Module, PHASE1, **how)
    folder = Path(str(refused.value).partition("; ")[2].partition("not_finite")[0].split()[-1])
    assert sorted(path.name for path in folder.glob("not_finite*")) == [
        *(f"not_finite_{n:08d}.json" for n in (2, 4, 5)), "not_finite_00000006.ckpt", "not_finite_00000006.json",
    ]  # fmt: skip
    note = json.loads((folder / "not_finite_00000006.json").read_text())
    assert note["losses"]["contrastive_loss"] == "nan" and len(note["samples"][0]) == 4
    assert all(name == "tiny" and image.startswith("train") for name, image, _ in note["samples"][0])
    before, kept = checkpoint_of(folder, "step_00000003.ckpt"), torch.load(folder / "not_finite_00000006.ckpt")
    for name, value in before["state_dict"].items():
        assert torch.equal(value, kept["state_dict"][name]) and torch.isfinite(value).all(), name


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(start, monkeypatch):
    """log1p at -1 has a finite loss's infinite slope; here the gradient is spoilt on its way."""
    backward = Phase1Module._backward

    def spoilt(self, loss, last):
        backward(self, loss, last)
        if self.batches_seen == 2:
            next(p for p in self.parameters() if p.grad is not None).grad.fill_(float("inf"))

    monkeypatch.setattr(Phase1Module, "_backward", spoilt)
    done = start(Phase1Module, PHASE1, version=0, max_steps=3, checkpoint_steps=1, keep_checkpoints=9)
    one, two = (checkpoint_of(done.folder, f"step_0000000{n}.ckpt")["state_dict"] for n in (1, 2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (done.folder / "not_finite_00000002.json").is_file()


def test_killed_in_the_middle_it_goes_on_bit_for_bit(start, whole_run, tmp_path):
    """The command itself, SIGKILL after its first checkpoint."""
    keys = {**whole_run(Phase2Module, PHASE2).keys, "log_dir": str(tmp_path / "log"), "version": 1}
    words, environment = command("Phase2/run.py", PHASE2, keys)
    folder = tmp_path / "log" / "Contrastive_Train_seed1" / "version_1"
    with open(tmp_path / "out.txt", "w") as out:
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=out, stderr=out)
    give_up = time.monotonic() + 100
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "out.txt").read_text()[-2000:]
    assert checkpoint_of(folder)["global_step"] < 9
    resumed = start(Phase2Module, PHASE2, version=1, resume_from="auto", **WHOLE)
    assert resumed.folder == folder
    assert_identical(checkpoint_of(whole_run(Phase2Module, PHASE2).folder), checkpoint_of(folder))


def test_a_loader_process_that_the_system_kills_is_named(start, monkeypatch):
    """As the memory killer does it; the launcher may start again, so not status 2."""
    from lexlip_data.loading.datasets import CaptionPairs

    main, read = os.getpid(), CaptionPairs.__getitem__

    def killed(self, key):
        if os.getpid() != main and key[1] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, key)

    monkeypatch.setattr(CaptionPairs, "__getitem__", killed)
    with pytest.raises(Refused, match="loader process [0-9]+ was .*memory killer") as refused:
        start(Phase1Module, PHASE1, version=0, max_steps=8, num_workers=1, get_recall_metric=False)
    assert refused.value.code == 1
