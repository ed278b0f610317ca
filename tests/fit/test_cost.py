"""What lexlip fit says of its trainings before they start, and where they go."""

import re
from types import SimpleNamespace

import frozen_tiny
import pytest
import torch
from transformers import AutoTokenizer

from lexlip.cli import main
from lexlip.features.data import read_data
from lexlip.fit import cost, run
from lexlip.fit.cost import BATCH, SECONDS, TERMS, training_cost
from lexlip.train import trainer
from lexlip.train.config import Config, base

LINE = re.compile(r"(?:(\d[\d,]*) min|less than a minute)")


@pytest.fixture(scope="module")
def world(frozen, tmp_path_factory):
    """120 photos with captions, and the tokenizer of their words."""
    table = frozen_tiny.write_table(tmp_path_factory.mktemp("cost") / "data", 120)
    pairs = read_data([table], held_out=0)["train"]
    return SimpleNamespace(pairs=pairs, lexicon=AutoTokenizer.from_pretrained(frozen.text.removeprefix("st:")))


def minutes(plans, world, tokens=1):
    line = training_cost(plans, world.pairs, tokens, world.lexicon, run.CPU)
    return [int((found or "0").replace(",", "")) for found in LINE.findall(line)]


def test_minutes_are_those_that_were_measured_times_batch_and_terms(world, monkeypatch):
    monkeypatch.setattr(cost, "count_terms", lambda pairs, lexicon, least: terms)
    terms = TERMS
    for head, told in (("contextual", 10), ("lookup", 12)):
        plans = run.plans(6000, 0, {"head_text": head})
        assert plans["lexicon"]["batch_size"] == BATCH
        assert minutes(plans, world) == [2, told] == [round(600 * SECONDS[name] / 60) for name in ("dense", head)]
    plans = run.plans(6000, 0, {"head_text": "contextual", "max_steps": 60_000})
    assert minutes(plans, world) == [200, 1000]
    plans["lexicon"]["batch_size"] //= 2
    terms *= 3
    assert minutes(plans, world) == [200, 1500]
    assert minutes({"lexicon": plans["lexicon"]}, world, tokens=49) == [round(1500 * (1 + 48 * cost.PER_TOKEN))]


def test_a_gpu_takes_less(world):
    plans = run.plans(6000, 0, {"head_text": "lookup"})
    lines = {
        name: training_cost(plans, world.pairs, 1, world.lexicon, torch.device(name))
        for name in ("cpu", "mps", "cuda:1")
    }
    assert lines["cuda:1"] == f"{lines['cpu']}; cuda:1 takes less" and lines["mps"] == lines["cpu"]


def test_terms_are_counted_from_a_sample(world, monkeypatch):
    captions = [world.pairs.caption(number) for number in range(240)]
    pieces = [set(world.lexicon(text, add_special_tokens=False)["input_ids"]) for text in captions]

    def exact(least):
        return sum(sum(piece in row for row in pieces) >= least for piece in range(5, len(world.lexicon)))

    for least in (1, 25, 120, 121):
        assert cost.count_terms(world.pairs, world.lexicon, least) == exact(least)
    monkeypatch.setattr(cost, "SAMPLE", 80)
    assert cost.count_terms(world.pairs, world.lexicon, 20) == exact(20)  # nothing here is near the bound


class Enough(Exception):
    """Both trainings were seen."""


def stop(*given):
    raise Enough


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda:1", 1), (None, 1), ("mps", 0)])
def test_training_goes_to_the_gpu_that_is_named_or_there(device, gpus, tmp_path, monkeypatch):
    seen, chosen = [], []
    monkeypatch.setattr("lexlip.utils.devices.usable_device", lambda name: torch.device(name or "cuda:0"))
    monkeypatch.setattr("lexlip.features.cli.write_cache", lambda *given: SimpleNamespace(complete=True))
    monkeypatch.setattr(run, "FeatureStore", lambda path: SimpleNamespace(split=lambda name: photos))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(run, "run", lambda config, module: seen.append(config))
    monkeypatch.setattr(run, "export_frozen", stop)
    photos = SimpleNamespace(image_ids=range(200))
    command = ["fit", "--data", "x", "--image", "y", "--text", "z", "--out", str(tmp_path / "model")]
    with pytest.raises(Enough):
        main([*command, *(["--device", device] if device else [])])
    assert [config.num_gpus for config in seen] == [gpus, gpus]
    assert [config.head for config in seen] == ["dense", "lexicon"]
    assert chosen == ([torch.device(device or "cuda:0")] if gpus else [])


def test_one_gpu_is_the_current_one(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(trainer.pl, "Trainer", lambda **given: made.update(given))
    for gpus, devices in ((1, [2]), (3, 3), (0, 1)):
        config = Config.checked(
            {**base(), "num_gpus": gpus, "test_only": True, "batch_size": 3, "per_gpu_batchsize": 1}
        )
        trainer.make_trainer(config, tmp_path, 1, False, None, True)
        assert made["devices"] == devices and made["accelerator"] == ("gpu" if gpus else "cpu")
