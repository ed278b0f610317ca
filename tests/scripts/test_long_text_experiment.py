"""The experiment's command at toy scale: six real trainings of two steps, and the table of their numbers."""

import json
import subprocess
from types import SimpleNamespace

import pytest

pytest.importorskip("sacred")

from lexlip.errors import UserError  # noqa: E402
from lexlip.train.main import make_experiment  # noqa: E402
from Phase1.module import Phase1Module  # noqa: E402


@pytest.fixture(scope="module")
def experiment(load_script):
    return load_script("long_text_experiment")


@pytest.mark.slow
def test_it_trains_evaluates_and_does_nothing_twice(experiment, tiny_data, tmp_path, capsys, monkeypatch):
    keys = {
        "datasets": ["tiny"], "data_root": str(tiny_data["root"]), "tokenizer": tiny_data["tokenizer"],
        "vocab_size": tiny_data["words"], "vit": "resnet10t", "vit_pretrained": False, "image_size": 32,
        "input_image_embed_size": 512, "text_layers": 1, "input_text_embed_size": 16, "hidden_size": 16,
        "num_heads": 2, "batch_size": 4, "per_gpu_batchsize": 4, "max_steps": 2, "num_workers": 0,
    }  # fmt: skip
    words = ["--out", str(tmp_path / "out"), "--seeds", "3", *(f"{key}={value!r}" for key, value in keys.items())]
    commands = []

    def run(command, check):
        """The first in a process of its own, the others in this one, where everything is imported already."""
        commands.append(command)
        if len(commands) == 1:
            return subprocess.run(command, check=check)
        return make_experiment("LexLIP-Phase1", Phase1Module).run_commandline(command[1:])

    monkeypatch.setattr(experiment, "subprocess", SimpleNamespace(run=run))
    assert experiment.main(words) == 0 and len(commands) == 6
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    variants = ("short", "plain", "lotlip")
    assert set(results["runs"]) == {f"{head}_{variant}" for head in ("dense", "lexicon") for variant in variants}
    for row in results["runs"].values():
        assert [(row[kind][0]["pictures"], row[kind][0]["captions"]) for kind in ("short", "long")] == [(4, 8), (4, 4)]
    models = tmp_path / "out" / "models"
    configs = {name: json.loads((models / f"{name}_seed3" / "config.json").read_text()) for name in results["runs"]}
    assert [configs[name]["corner_tokens"] for name in ("dense_short", "dense_lotlip")] == [0, 2]
    assert {config["head"] for config in configs.values()} == {"dense", "lexicon"}
    assert all(config["sentence_sep"] and config["max_text_len"] == 128 for config in configs.values())
    assert set(results["gains"]) == {"dense_plain", "dense_lotlip", "lexicon_plain", "lexicon_lotlip"}
    assert capsys.readouterr().out.count("lexicon_lotlip  long") == 2

    monkeypatch.setattr(experiment.subprocess, "run", None)  # nothing is trained again
    assert experiment.main(words) == 0
    with pytest.raises(UserError, match="of a run with another config"):
        experiment.main([*words, "max_steps=3"])


def test_mean_and_spread_by_hand(experiment):
    def row(number):
        return {side: {f"R@{k}": number for k in (1, 5, 10)} for side in ("t2i", "i2t")}

    spread = experiment._spread([row(10.0), row(14.0), row(12.0)])
    assert spread["t2i"]["R@1"] == [12.0, 2.0] and experiment._spread([row(3.0)])["i2t"]["R@10"] == [3.0, 0.0]
    table = experiment._table({"dense_short": {"short": spread, "long": spread}}, "3 seeds")
    assert "   12.00 ±2.00" in table and "3 seeds" in table


def test_gains_are_taken_seed_by_seed(experiment):
    def rows(*numbers):
        return [{side: {f"R@{k}": number for k in (1, 5, 10)} for side in ("t2i", "i2t")} for number in numbers]

    results = {
        "dense_short": {"short": rows(10.0, 20.0), "long": rows(1.0, 2.0)},
        "dense_lotlip": {"short": rows(9.0, 19.0), "long": rows(4.0, 7.0)},
        "lexicon_lotlip": {"short": rows(1.0, 1.0), "long": rows(1.0, 1.0)},  # nothing to compare with
    }
    gains = experiment._summary(experiment._gains(results))
    assert set(gains) == {"dense_lotlip"}
    assert gains["dense_lotlip"]["short"]["t2i"]["R@1"] == [-1.0, 0.0]
    assert gains["dense_lotlip"]["long"]["i2t"]["R@5"] == [4.0, pytest.approx(2**0.5)]


def test_an_unknown_variant_is_refused(experiment, capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--variants", "short,tall"])
    assert "'tall' is none of short, lotlip, plain" in capsys.readouterr().err
