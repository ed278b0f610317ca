"""The table of losses on a cache at toy scale: trainings of two steps, each done once, and their numbers."""

import json

import pytest

pytest.importorskip("sacred")

from lexlip.fit import settings
from lexlip.train.config import Config, base, named


@pytest.fixture(scope="module")
def losses(load_script):
    return load_script("frozen_losses")


def test_every_variant_is_trained_once_and_has_a_row(losses, frozen, tmp_path, capsys, monkeypatch):
    few = settings.Settings(0, 8, 2, 3, 0.1, 0.1, 1, 0.5)
    monkeypatch.setattr(settings, "settings_for", lambda images: few)
    variants = ["plain", "threshold of 64 terms", "all, lookup"]
    words = [str(frozen.features), "--out", str(tmp_path), "--seeds", "0,1", "--variants", ";".join(variants)]
    words.append("learning_rate=0.01")
    assert losses.main(words) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert list(runs) == ["dense reference", *variants] and {len(of) for of in runs.values()} == {2}
    assert set(runs["dense reference"][0]) == {"sum"}
    for name in variants:
        for run in runs[name]:
            assert run["terms, text"] > 0 and 0 < run["shared"] <= run["terms, text"]
            assert run["8 terms"] > 0 <= run["grounded"] <= 100
    table = (tmp_path / "table.md").read_text()
    assert "| dense reference | 2 | " in table and "| all, lookup | 2 | " in table and "learning_rate=0.01" in table
    assert table in capsys.readouterr().out
    trained = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("step_*.ckpt")}
    assert len({file for file in trained if file.name.endswith("3.ckpt")}) == 6  # of two seeds and three variants
    assert losses.main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("step_*.ckpt")} == trained
    assert (tmp_path / "table.md").read_text() == table


def test_every_variant_resolves_and_adds_one_thing(losses):
    given = {**base(), **named()["task_frozen_lexicon_train"]}
    for name, keys in losses.VARIANTS.items():
        Config.checked({key: value for key, value in {**given, **keys}.items() if key in base()})
        if not name.startswith("all"):
            changed = {key for key, value in keys.items() if losses.PLAIN.get(key) != value}
            assert bool(changed) == (name != "plain") and len(changed) <= 2


def test_an_unknown_variant_is_told(losses, capsys):
    with pytest.raises(SystemExit):
        losses.main(["FEATURES", "--variants", "plain;best"])
    assert "'best' is none of: plain" in capsys.readouterr().err
