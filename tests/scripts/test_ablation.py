"""The ablation's command at toy scale: trainings of two steps, each done once, and the table of their numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sacred")

from lexlip.train.main import make_experiment
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


@pytest.fixture(scope="module")
def ablation(load_script):
    return load_script("ablation")


def test_variants_share_trainings_and_none_is_done_twice(ablation, tiny_data, tmp_path, capsys, monkeypatch):
    keys = {
        "datasets": ["tiny"], "data_root": str(tiny_data["root"]), "tokenizer": tiny_data["tokenizer"],
        "vocab_size": tiny_data["words"], "vit": "resnet10t", "vit_pretrained": False, "image_size": 32,
        "text_layers": 1, "input_text_embed_size": 16, "num_heads": 2, "batch_size": 4, "per_gpu_batchsize": 4,
        "num_workers": 0, "eval_batch_size": 4, "queue_size": 8, "max_text_len": 8,
    }  # fmt: skip
    words = ["--out", str(tmp_path / "out"), "--seeds", "3", "--steps", "2,1"]
    words += ["--variants", "Phase 1 alone;Phase 1 + 2;without momentum", *(f"{k}={v!r}" for k, v in keys.items())]
    commands = []

    def run(command, check):
        """In this process, where everything is imported already."""
        commands.append(command)
        phase = Phase2Module if "Phase2" in command[1] else Phase1Module
        make_experiment(phase.__name__, phase).run_commandline(command[1:])

    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(run=run))
    assert ablation.main(words) == 0
    trainings = [command for command in commands if "task_IRTR_evaluate" not in command]
    assert len(commands) == 6 and len(trainings) == 3  # one Phase 1, and what follows it
    assert [("Phase2" in command[1], "load_path" in " ".join(command)) for command in trainings] == [
        (False, False), (True, True), (False, True),
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert list(results) == ["Phase 1 alone", "Phase 1 + 2", "without momentum"]
    assert all(len(runs) == 1 and list(runs[0]) == list(ablation.MEASURES) for runs in results.values())
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| Phase 1 + 2 | 1 | " in table and table in capsys.readouterr().out
    monkeypatch.setattr(ablation.subprocess, "run", None)  # nothing is trained again
    assert ablation.main(words) == 0 and (tmp_path / "out" / "table.md").read_text() == table
    with pytest.raises(SystemExit, match="of a run with other settings"):
        ablation.main([*words, "learning_rate=1.0"])


def added(keys, further):
    """Later values win; entries of a dict are added to it, as sacred does."""
    return {**keys, **{key: {**keys[key], **v} if isinstance(v, dict) else v for key, v in further.items()}}


def test_every_ablation_of_the_list_is_there_and_resolves(ablation):
    from lexlip.train.config import base, named
    from lexlip.train.main import check_config
    from lexlip.train.words import read_words

    assert list(ablation.PARTS) == [
        "Phase 2 alone", "Phase 1 alone", "Phase 1 + 2", "without i2t", "without t2t", "without self_t",
        "without the bottleneck", "without momentum", "without FLOPS", "with DR",
    ]  # fmt: skip
    names = {ablation._name(stage) for stages in ablation.LOSSES.values() for stage in stages}
    assert len(names) == len(ablation.LOSSES) and max(map(len, names)) < 100  # a file has two of them, and more
    for data, configs in ablation.CONFIGS.items():
        variants = [*ablation.PARTS.values(), *(ablation.LOSSES.values() if data == "flickr8k" else [])]
        pairs = [(stage, configs[bool(i)]) for stages in variants for i, stage in enumerate(stages)]
        for stage, of_stage in pairs:
            keys = base()
            for name in [stage.task, *of_stage]:
                keys = added(keys, named()[name])
            words = ["teacher=x.ckpt" if word == ablation.TEACHER else word for word in stage.keys]
            keys = added(keys, read_words(words, {})[0])
            phase = Phase2Module if stage.phase == 2 else Phase1Module
            config = check_config(keys, phase)
            assert config.num_gpus == 0, data
            groups = phase.trained_groups(config)
            assert ("contrastive" in groups) and (
                stage.task != "task_contrastive_train" or groups <= {"contrastive", "push", "dense", "distill"}
            )


def test_second_trainings_have_one_recipe_whatever_their_phase(ablation, tmp_path, monkeypatch):
    recipes = {}

    def run(command, check):
        keys = dict(word.split("=", 1) for word in command if "=" in word)
        if "metrics_file" in keys:
            way = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}
            row = {"t2i": way, "i2t": way, "rsum": 6.0, "active_terms": {"text": 1, "image": 1}, "shared_terms": 1.0}
            row |= {"grounding": {"images": 1.0}, "pruned": {str(k): dict(row) for k in ablation.CUTS}}
            Path(keys["metrics_file"].strip("'")).write_text(json.dumps({"val": row}))
            return
        recipes[command[1][-13:-7], "load_path" in keys] = "demo_phase1" in command, "demo_phase2" in command

    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(run=run))
    variants = "Phase 2 alone;Phase 1 + 2;without momentum"
    assert ablation.main(["--data", "openmoji", "--out", str(tmp_path), "--seeds", "0", "--variants", variants]) == 0
    assert recipes == {
        ("Phase2", False): (False, True), ("Phase1", False): (True, False),
        ("Phase2", True): (False, True), ("Phase1", True): (False, True),
    }  # fmt: skip


def test_mean_and_spread_by_hand(ablation):
    assert ablation._spread([1.0, 2.0, 6.0]) == "3.00 ± 2.65" and ablation._spread([1.5]) == "1.50 ± 0.00"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--variants without", "'without' is none of: Phase 2 alone; "),
        ("--steps 3", "--steps: two numbers"),
        ("--study losses --data openmoji", "take --data flickr8k"),
    ],
)
def test_wrong_options_are_told(ablation, words, told, capsys):
    with pytest.raises(SystemExit):
        ablation.main(words.split())
    assert told in capsys.readouterr().err
