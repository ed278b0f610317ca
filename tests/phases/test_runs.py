"""The command line's entry point as a function: train, go on, hand over, evaluate, refuse. A few seconds a run."""

import csv
import json
import shutil
import time

import pytest
import tiny
import torch
from PIL import Image
from runs import EVALUATE, PHASE1, PHASE2, Refused, checkpoint_of, logged
from sacred.utils import SacredError
from transformers import AutoTokenizer

from lexlip.evaluate import recall
from lexlip.models.lexicon_head import LexiconHead
from lexlip.models.lexlip import LexLIP
from lexlip.models.weights import load_model
from lexlip.train import run_dir
from lexlip.train.build import build_model
from lexlip.train.config import Config
from lexlip_data.loading.transforms import build_transform
from lexlip_data.sources.source import hash_id
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


def test_phase_1_then_phase_2_then_evaluation(start, tiny_data, tmp_path):
    one = start(Phase1Module, PHASE1, max_steps=2, version=0)
    checkpoints = one.folder / "checkpoints"
    files = {"last.ckpt", "best.ckpt", "best.json", "step_00000002.ckpt"}
    assert {path.name for path in checkpoints.iterdir()} == files
    assert {"metrics.csv", "sacred"} <= {path.name for path in one.folder.iterdir()}
    assert list(one.folder.glob("events.out.tfevents*"))
    assert json.loads((one.folder / "sacred" / "1" / "config.json").read_text())["max_steps"] == 2
    assert json.loads((one.folder / "sacred" / "1" / "run.json").read_text())["status"] == "COMPLETED"
    assert checkpoint_of(one.folder)["global_step"] == 2
    assert {"val/rsum", "val/tiny/t2i_R@1", "val/tiny/i2t_R@10"} <= set(one.result)
    assert 0 <= one.result["val/rsum"] <= 600

    two = start(Phase2Module, PHASE2, max_steps=2, version=0, DR=True, load_path=str(checkpoints / "best.ckpt"))
    content = checkpoint_of(two.folder)
    state = content["state_dict"]
    assert content["global_step"] == 2
    assert int(state["text_ring.filled"]) == int(state["image_ring.filled"]) == 8
    assert not any(name.startswith("decoder.") for name in state)

    best = str(two.folder / "checkpoints" / "best.ckpt")
    metrics_file = tmp_path / "out" / "metrics.json"
    three = start(Phase2Module, EVALUATE, load_path=best, metrics_file=str(metrics_file), eval_top_k=[4], eval_folds=2)
    metrics = json.loads(metrics_file.read_text())
    assert metrics == three.result
    assert not (three.folder / "checkpoints").exists()
    assert set(metrics) == {"tiny"}
    assert (metrics["tiny"]["pictures"], metrics["tiny"]["captions"]) == (4, 8)

    # The same numbers by the model alone, from the table, one image and one caption at a time.
    keys = three.keys
    model = build_model(LexLIP, Config.checked(keys), AutoTokenizer.from_pretrained(keys["tokenizer"]))
    load_model(model, best)
    transform = build_transform("vit", 32)
    images, texts, ids, seen = [], [], [], []
    with open(tiny_data["root"] / "tiny" / "tiny_test.tsv", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            texts.append(model.encode_text(row["title"])[0])
            ids.append(hash_id("tiny", row["image_id"]))
            if row["image_id"] not in seen:
                seen.append(row["image_id"])
                image = Image.open(tiny_data["root"] / "tiny" / row["filepath"]).convert("RGB")
                images.append(model.encode_image(transform(image)[None])[0])
    image_ids = [hash_id("tiny", name) for name in seen]
    wanted = recall.evaluate(
        recall.SparseVectors.from_dense(torch.stack(images), torch.tensor(image_ids), torch.arange(4)),
        recall.SparseVectors.from_dense(torch.stack(texts), torch.tensor(ids), torch.arange(8)),
        [4], 2,
    )  # fmt: skip
    for side in ("t2i", "i2t"):
        assert metrics["tiny"][side] == pytest.approx(wanted[side])
        assert metrics["tiny"]["pruned"]["4"][side] == pytest.approx(wanted["pruned"]["4"][side])
        assert metrics["tiny"]["folds"][side] == pytest.approx(wanted["folds"][side])
    assert metrics["tiny"]["chance"]["t2i"]["R@1"] == 25.0


def test_momentum_encoders_and_queues_move_with_the_steps_and_not_with_validation(start, monkeypatch):
    """Two micro-batches a step, a validation after each, once by recall and once by pairs."""
    events = []
    after, validate = Phase2Module.after_step, Phase2Module.validation_step

    def after_step(self, batch, context):
        before = {name: value.clone() for name, value in self.state_dict().items()}
        after(self, batch, context)
        moved = {name for name, value in self.state_dict().items() if not torch.equal(value, before[name])}
        assert {"twin.module.text_head.decoder.weight", "text_ring.keys", "image_ring.position"} <= moved
        events.append("step")

    def validation_step(self, batch, index, dataloader_idx=0):
        before = {name: value.clone() for name, value in self.state_dict().items()}
        validate(self, batch, index, dataloader_idx)
        assert all(torch.equal(value, before[name]) for name, value in self.state_dict().items())
        events.append("validation")

    monkeypatch.setattr(Phase2Module, "after_step", after_step)
    monkeypatch.setattr(Phase2Module, "validation_step", validation_step)
    for by_recall in (True, False):
        events.clear()
        start(Phase2Module, PHASE2, max_steps=3, val_check_interval=1, get_recall_metric=by_recall)
        steps = "".join(event[0] for event in events).split("s")[1:]  # the validation batches after each step
        assert len(steps) == 3 and len(set(steps)) == 1 and set(steps[0]) == {"v"}


def test_without_recall_the_best_checkpoint_is_that_of_the_smallest_loss(start):
    how = {"get_recall_metric": False, "val_check_interval": 1, "keep_checkpoints": 4}
    done = start(Phase1Module, PHASE1, max_steps=4, version=0, **how)
    assert "val/loss" in done.result and "val/rsum" not in done.result
    losses = [float(row["val/loss"]) for row in logged(done.folder, "val/loss")]
    best = json.loads((done.folder / "checkpoints" / "best.json").read_text())
    assert len(losses) == 4 and best == {"val/loss": pytest.approx(min(losses)), "step": 1 + losses.index(min(losses))}
    assert checkpoint_of(done.folder, "best.ckpt")["global_step"] == best["step"]


def test_training_reads_no_test_split_and_needs_no_val(start, tiny_data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_data["root"] / "tiny", root / "tiny")
    (root / "tiny" / "tiny_test.tsv").unlink()
    (root / "tiny" / "tiny_val.tsv").unlink()
    done = start(Phase1Module, PHASE1, max_steps=1, data_root=str(root), version=0)
    assert checkpoint_of(done.folder)["global_step"] == 1
    assert not (done.folder / "checkpoints" / "best.ckpt").exists()


def test_16_bits_on_the_cpu(start, monkeypatch):
    """They are bfloat16, in training and in validation; weights stay in 32."""
    heads, transform = [], LexiconHead.transform
    monkeypatch.setattr(
        LexiconHead, "transform", lambda self, x: heads.append(self.dense(x).dtype) or transform(self, x)
    )
    done = start(Phase1Module, PHASE1, max_steps=1, precision=16, version=0)
    assert set(heads) == {torch.bfloat16}
    state = checkpoint_of(done.folder)["state_dict"]
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
    assert torch.isfinite(torch.tensor(list(done.result.values()))).all()


def test_bottle_and_contrastive_modes_run(start):
    for task, parts in (("task_bottle_pretrain", {"i2t_mlm_loss"}), ("task_contrastive_train", {"contrastive_loss"})):
        done = start(Phase1Module, [task, "text_bert"], max_steps=1, get_recall_metric=False, version=0)
        names = {name.removeprefix("val/") for name in done.result}
        assert parts <= names
        assert ("contrastive_loss" in names) == (task == "task_contrastive_train")


def test_a_trial_run_saves_nothing(start, tmp_path):
    start(Phase1Module, PHASE1, fast_dev_run=True)
    assert not (tmp_path / "log").exists()


def test_every_run_gets_a_folder_of_its_own(start, tmp_path):
    """Also two runs of one process, as in a notebook."""
    for _ in range(2):
        start(Phase1Module, PHASE1, max_steps=1, exp_name="twice")
    folder = tmp_path / "log" / "twice_seed1"
    assert sorted(path.name for path in folder.iterdir()) == ["version_0", "version_1"]
    for version in folder.iterdir():
        assert (version / "checkpoints" / "last.ckpt").is_file()
        assert len([p for p in (version / "sacred").iterdir() if p.name.isdigit()]) == 1


def test_run_directory(make_config, tmp_path):
    config = make_config(log_dir=str(tmp_path), exp_name="e", seed=3)
    parent = tmp_path / "e_seed3"
    (parent / "version_4" / "checkpoints").mkdir(parents=True)
    (parent / "version_4" / "checkpoints" / "step_00000001.ckpt").write_bytes(b"cut short")
    (parent / "version_5" / "checkpoints").mkdir(parents=True)  # died before its first checkpoint
    (parent / "version_x").mkdir()
    (parent / "version_6").mkdir()  # an evaluation, say
    assert run_dir.choose(config) == (parent / "version_7", None)
    assert (parent / "version_7").is_dir()  # claimed at once, so that no other run takes the number
    assert run_dir.choose(config)[0] == parent / "version_7"  # the other processes of the same run
    assert run_dir.choose(config.changed(version=9))[0] == parent / "version_9"
    assert run_dir.choose(config.changed(version="final"))[0] == parent / "final"
    run_dir.forget()
    assert run_dir.choose(config.changed(resume_from="auto")) == (parent / "version_4", None)


@pytest.mark.parametrize(
    ("precision", "gpus", "name"),
    [(32, 0, "32-true"), ("32-true", 1, "32-true"), (16, 1, "16-mixed"), (16, 0, "bf16-mixed"),
     ("16-mixed", 1, "16-mixed"), ("bf16", 1, "bf16-mixed"), ("bf16-mixed", 0, "bf16-mixed")],
)  # fmt: skip
def test_precision(make_config, precision, gpus, name):
    assert make_config(precision=precision, num_gpus=gpus).trainer_precision == name


# --- refusals ---


@pytest.mark.parametrize(
    ("phase", "changes", "says"),
    [
        (Phase1Module, {"batch_size": 5}, "batch_size=5 does not divide"),
        (Phase1Module, {"learning_rate": "fast"}, "learning_rate='fast'"),
        (Phase1Module, {"vocab_size": 4000}, "has .* word pieces, but vocab_size=4000"),
        (Phase1Module, {"tokenizer": "no/such/folder"}, "tokenizer=no/such/folder"),
        (Phase1Module, {"data_root": "no_such_folder"}, "no_such_folder does not exist"),
        (Phase1Module, {"datasets": ["tiny", "tinny"]}, "data set tinny"),
        (Phase1Module, {"load_path": "gone.ckpt"}, "gone.ckpt: no such"),
        (Phase1Module, {"resume_from": "gone.ckpt"}, "gone.ckpt"),
        (Phase1Module, {"patch_size": 16}, "patch_size=16.*have 8"),
        (Phase2Module, {"queue_size": 3}, "queue_size=3 is smaller than batch_size=4"),
        (Phase2Module, {"training_mode": "both"}, "training_mode=both"),
        (Phase2Module, {"DR": True, "image_size": 24}, "DR=True .*image_size=24"),
        (Phase2Module, {"num_gpus": 2, "batch_size": 8}, "num_gpus=2"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_no_checkpoint(start, tmp_path, monkeypatch, phase, changes, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=says):
        start(phase, PHASE1 if phase is Phase1Module else PHASE2, max_steps=1, **changes)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_misspelt_key_is_refused(start):
    with pytest.raises(SacredError, match="learning_rat'"):
        start(Phase1Module, PHASE1, learning_rat=1.0)


def test_evaluation_without_a_test_split_is_refused(start, tiny_data, tmp_path):
    shutil.copytree(tiny_data["root"] / "tiny", tmp_path / "data" / "tiny")
    (tmp_path / "data" / "tiny" / "tiny_test.tsv").unlink()
    with pytest.raises(Refused, match="test split"):
        start(Phase2Module, EVALUATE, data_root=str(tmp_path / "data"))


def test_a_broken_image_is_skipped_in_training_and_named_in_evaluation(start, tiny_data, tmp_path, caplog):
    """1 of 8 training images, 2 of 16 pairs."""
    shutil.copytree(tiny_data["root"] / "tiny", tmp_path / "data" / "tiny")
    for split in ("train", "test"):
        (tmp_path / "data" / "tiny" / f"{split}_0.png").write_bytes(b"broken")
    how = {"max_epoch": 2, "data_root": str(tmp_path / "data"), "batch_size": 8}
    done = start(Phase1Module, PHASE1, max_bad_share=0.125, version=0, **how)
    assert sum("training sample skipped" in line and "train0" in line for line in caplog.messages) == 4
    lines = (done.folder / "skipped_samples.tsv").read_text().splitlines()
    assert len(lines) == 4 and all("tiny/train0" in line for line in lines)
    assert [line[0] for line in lines] == ["0", "0", "1", "1"]
    with pytest.raises(Refused, match="2 of the 16 training pairs of epoch 0 .*max_bad_share=0.1.*skipped_samples.tsv"):
        start(Phase1Module, PHASE1, max_bad_share=0.1, version=1, **how)
    with pytest.raises(Refused, match="test0"):
        last = str(done.folder / "checkpoints" / "last.ckpt")
        start(Phase2Module, EVALUATE, data_root=str(tmp_path / "data"), load_path=last)


def test_rows_of_a_table_that_make_no_sample_are_listed_once(start, tiny_data, tmp_path):
    shutil.copytree(tiny_data["root"] / "tiny", tmp_path / "data" / "tiny")
    with open(tmp_path / "data" / "tiny" / "tiny_train.tsv", "a") as file:
        file.write("\ttrain_0.png\ttrain0\n")
    how = {"data_root": str(tmp_path / "data"), "version": 0}
    done = start(Phase1Module, PHASE1, max_steps=1, **how)
    start(Phase1Module, PHASE1, max_steps=2, resume_from="auto", **how)
    (line,) = (done.folder / "skipped_samples.tsv").read_text().splitlines()
    assert line.startswith("-\ttiny/") and "row 17: no caption" in line


def test_own_data_sets_and_caps_from_the_command_line(start):
    done = start(
        Phase1Module, PHASE1, max_steps=1, version=0, datasets=["mine"], max_images={"mine": 3},
        data_sets={"mine": {"train": ["tiny/tiny_train.tsv"], "val": ["tiny/tiny_val.tsv"]}},
    )  # fmt: skip
    assert done.keys["data_sets"]["mine"]["train"] == ["tiny/tiny_train.tsv"]
    assert "val/mine/t2i_R@1" in done.result


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_towers_train_to_the_same_weights(start, fresh_compiler):
    """The whole run, in Phase 2 with its momentum encoder; a compiler may order sums otherwise."""
    how = {
        "max_steps": 2,
        "learning_rate": 5e-5,
        "text_layers": 1,
        "vit_kwargs": {**tiny.MODEL["vit_kwargs"], "depth": 1},
    }
    states = []
    for version, compiled in enumerate((False, True)):
        done = start(Phase2Module, PHASE2, version=version, compile=compiled, **how)
        states.append(checkpoint_of(done.folder)["state_dict"])
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-4)


def test_throughput_is_logged_and_a_slow_loader_is_named(start, monkeypatch, caplog):
    from lexlip.train.callbacks import throughput
    from lexlip_data.loading.datasets import CaptionPairs

    read = CaptionPairs.__getitem__

    def slow(self, key):
        time.sleep(0.05)
        return read(self, key)

    monkeypatch.setattr(CaptionPairs, "__getitem__", slow)
    monkeypatch.setattr(throughput, "HINT_STEPS", 2)
    done = start(Phase1Module, PHASE1, version=0, max_steps=4, log_every=1, get_recall_metric=False)
    rows = logged(done.folder, "train/data_wait_ratio")
    assert len(rows) == 4
    assert all(0 < float(row["train/data_wait_ratio"]) < 1 for row in rows[1:])
    assert all(0 < float(row["train/pairs_per_second"]) < 20 for row in rows[1:])  # 4 pairs take 0.2 s at least
    assert sum("the loader is the limit" in line for line in caplog.messages) == 1


def test_which_terms_a_training_uses(start, caplog):
    done = start(Phase1Module, PHASE1, version=0, max_steps=4, log_every=2, get_recall_metric=False)
    rows = logged(done.folder, "train/flops_per_pair")
    assert len(rows) == 2
    for row in rows:
        active = {side: float(row[f"train/active_terms_{side}"]) for side in ("text", "image")}
        assert all(0 <= float(row[f"train/dead_terms_{side}"]) <= done.keys["vocab_size"] for side in active)
        assert 0 <= float(row["train/flops_per_pair"]) <= min(active.values()) <= done.keys["vocab_size"]
    with open(done.folder / "terms.csv", newline="") as file:
        terms = list(csv.DictReader(file))
    assert len(terms) == 2 * 2 * 10 and terms[0]["rank"] == "1"
    assert float(terms[0]["fraction"]) == pytest.approx(float(rows[0]["train/top_term_text"]), abs=1e-4)
    vocabulary = AutoTokenizer.from_pretrained(done.keys["tokenizer"]).get_vocab()
    assert all(term["term"] in vocabulary for term in terms)


def test_loggers_are_chosen(start, monkeypatch):
    done = start(Phase1Module, PHASE1, version=0, max_steps=2, log_every=1, get_recall_metric=False, loggers=["csv"])
    assert (done.folder / "metrics.csv").is_file() and not list(done.folder.glob("events*"))
    with pytest.raises(Refused, match="loggers=.*one of tensorboard, csv, wandb"):
        start(Phase1Module, PHASE1, version=1, max_steps=1, loggers=["mlflow"])
    monkeypatch.setattr("lexlip.train.trainer.find_spec", lambda name: None)
    with pytest.raises(Refused, match="wandb is not installed"):
        start(Phase1Module, PHASE1, version=2, max_steps=1, loggers=["csv", "wandb"])


def test_weights_and_biases_gets_the_numbers(start, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    done = start(Phase1Module, PHASE1, version=0, max_steps=2, log_every=1, get_recall_metric=False, loggers=["wandb"])
    assert list(done.folder.glob("wandb/offline-run-*/run-*.wandb"))
