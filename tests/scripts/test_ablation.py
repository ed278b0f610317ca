"""The ablation's command at toy scale: trainings of two steps, each done once, and the table of their numbers."""

import json
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
    assert len(commands) == 3  # one Phase 1, and what follows it
    assert [("Phase2" in command[1], "load_path" in " ".join(command)) for command in commands] == [
        (False, False), (True, True), (False, True),
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert list(results) == ["Phase 1 alone", "Phase 1 + 2", "without momentum"]
    assert all(len(runs) == 1 and set(runs[0]) == set(ablation.MEASURES.values()) for runs in results.values())
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| Phase 1 + 2 | 1 | " in table and table in capsys.readouterr().out
    monkeypatch.setattr(ablation.subprocess, "run", None)  # nothing is trained again
    assert ablation.main(words) == 0 and (tmp_path / "out" / "table.md").read_text() == table
    with pytest.raises(SystemExit, match="of a run with other settings"):
        ablation.main([*words, "learning_rate=1.0"])


def test_every_ablation_of_the_list_is_there_and_resolves(ablation):
    from lexlip.train.config import base, named
    from lexlip.train.main import check_config
    from lexlip.train.words import read_words

    assert list(ablation.VARIANTS) == [
        "Phase 2 alone", "Phase 1 alone", "Phase 1 + 2", "without i2t", "without t2t", "without self_t",
        "without the bottleneck", "without momentum", "without FLOPS", "with DR",
    ]  # fmt: skip
    for data, configs in ablation.CONFIGS.items():
        for stage, second in {(s, s.phase == 2 or n) for v in ablation.VARIANTS.values() for n, s in enumerate(v)}:
            keys = base()
            for name in [stage.task, *configs[second]]:
                keys |= named()[name]
            for key, value in read_words(list(stage.keys), {})[0].items():
                keys[key] = {**keys[key], **value} if isinstance(value, dict) else value
            phase = Phase2Module if stage.phase == 2 else Phase1Module
            config = check_config(keys, phase)
            assert config.num_gpus == 0, data
            groups = phase.trained_groups(config)
            assert ("contrastive" in groups) and (stage.task != "task_contrastive_train" or groups == {"contrastive"})


def test_what_stands_in_for_phase_2_has_its_settings(ablation, tmp_path, monkeypatch):
    """Else momentum would not be all that differs."""
    commands = []

    def run(command, check):
        commands.append(command)
        name, seed = (next(w for w in command if w.startswith(k)).partition("=")[2] for k in ("exp_name", "seed"))
        folder = tmp_path / f"{name[1:-1]}_seed{seed}" / "version_0"
        folder.mkdir(parents=True)
        measures = ablation.MEASURES.values()
        (folder / "metrics.csv").write_text(",".join(f"val/x/{m}" for m in measures) + "\n1,1,1,1\n")

    monkeypatch.setattr(ablation.subprocess, "run", run)
    words = ["--data", "openmoji", "--out", str(tmp_path), "--seeds", "3", "--variants", "Phase 1 + 2;without momentum"]
    assert ablation.main(words) == 0
    assert [("demo_phase1" in command, "demo_phase2" in command) for command in commands] == [
        (True, False), (False, True), (False, True),
    ]  # fmt: skip


def test_mean_and_spread_by_hand(ablation):
    assert ablation._spread([1.0, 2.0, 6.0]) == "3.00 ± 2.65" and ablation._spread([1.5]) == "1.50 ± 0.00"


@pytest.mark.parametrize("words", [["--variants", "without all"], ["--steps", "3"]])
def test_wrong_options_are_told(ablation, words, capsys):
    with pytest.raises(SystemExit):
        ablation.main(words)
    assert "without all" in capsys.readouterr().err or "--steps" in words
