"""The words of a training's command line are data, and none is lost in silence."""

import json
import os
import pickle

import pytest

pytest.importorskip("sacred")

from sacred.config import load_config_file

from lexlip.errors import ConfigError
from lexlip.train.words import read_words

NAMED = {"small": {"image_size": 64, "vit_kwargs": {"depth": 2}}, "other": {"seed": 1}}


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def files(folder):
    """Config files by name: those that would run code, or are no config."""
    code = {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": ["ran"]}]}
    (folder / "a.json").write_text(json.dumps({"vit": code}))
    (folder / "b.json").write_text(json.dumps({"vit": [{"x": {"py/object": "os.mkdir"}}]}))
    (folder / "c.pickle").write_bytes(pickle.dumps({"seed": Runs()}))
    (folder / "d.yaml").write_text('vit: !!python/object/apply:os.mkdir ["ran"]')
    (folder / "e.yml").write_text('vit: {json://x: {"py/type": os.mkdir}}')
    (folder / "f.json").write_text("[1]")
    (folder / "g.json").write_text("{")
    (folder / "h.yaml").write_text("a: [")
    (folder / "i.txt").write_text("seed: 1")
    (folder / "j.json").write_bytes(b"\xff\xfe")
    (folder / "k.json").write_text("[" * 100_000)
    lines = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"{b}: &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi")]
    (folder / "l.yaml").write_text("\n".join(lines))
    (folder / "m.json").mkdir()
    return sorted(path.name for path in folder.iterdir())


def test_config_files_that_run_code_or_hold_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in files(tmp_path):
        with pytest.raises(ConfigError, match=name) as refused:
            read_words([name], NAMED)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_sacred_itself_reads_files_as_data(tmp_path, monkeypatch):
    """However it comes to one: its own options may name files too."""
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    for name in ("a.json", "b.json", "d.yaml", "e.yml"):
        with pytest.raises(ConfigError):
            load_config_file(name)
    with pytest.raises(ValueError, match="unsupported"):
        load_config_file("c.pickle")
    assert not (tmp_path / "ran").exists()


def test_plain_files_are_read(tmp_path):
    for name, text in (("a.json", '{"seed": 3, "vit_kwargs": {"depth": 4}}'), ("b.yaml", "seed: 3\nvit: null")):
        path = tmp_path / name
        path.write_text(text)
        assert read_words([str(path), "DR=true"], NAMED) == ({"DR": True}, [str(path)])
        assert load_config_file(str(path))["seed"] == 3


@pytest.mark.parametrize("word", [
    'vit={"py/object": "os.system"}', 'vit=[{"py/reduce": []}]', 'a.b={"json://1": 2}', 'vit=({"py/type": "x"},)',
])  # fmt: skip
def test_values_that_run_code_are_refused(word):
    with pytest.raises(ConfigError, match="would run code"):
        read_words([word], NAMED)


@pytest.mark.parametrize("text, value", [
    ("null", None), ("None", None), ("true", True), ("false", False), ("1e-3", 1e-3), ("vit_base", "vit_base"),
    ('{"gcc": null}', {"gcc": None}), ("[1, 2]", [1, 2]), ("(1, 2)", [1, 2]), ("NaN", "NaN"), ("", ""),
    ("'null'", "null"),
    ("a=b", "a=b"), ("Null", "Null"),
])  # fmt: skip
def test_values_are_python_or_what_configs_write(text, value):
    assert read_words([f"key={text}"], NAMED) == ({"key": value}, [])


def test_a_named_config_that_would_be_overruled_in_silence_is_refused():
    for words in (["image_size=224", "small"], ["vit_kwargs={'depth': 3}", "small"], ["vit_kwargs.depth=3", "small"]):
        with pytest.raises(ConfigError, match="small comes after .*=.* and says") as refused:
            read_words(words, NAMED)
        assert words[0] in str(refused.value)
        assert read_words([*reversed(words)], NAMED)[1] == ["small"]
        assert read_words([*words, words[0]], NAMED)[1] == ["small"]
    for words in (["image_size=64", "small"], ["seed=3", "small"], ["vit_kwargs.width=3", "small"]):
        read_words(words, NAMED)


def test_a_space_after_an_equals_sign_is_told():
    """As in the authors' own README."""
    with pytest.raises(ConfigError) as caught:
        read_words(["queue_size=4", "load_path=", "/path/to/model.ckpt"], NAMED)
    assert str(caught.value) == ("there is a space after load_path=; write load_path=/path/to/model.ckpt in one piece")
    assert read_words(["load_path=", "other"], NAMED) == ({"load_path": ""}, ["other"])


def test_wrong_words_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("seed: 1")
    for words, message in (
        (["smal"], "did you mean small"), (["no.json"], "no such file; known are"),
        (["seed=1", "seed.x=2"], "cannot be"),
        (["small"], "a named config and a file"), (["key={1, 2}"], "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            read_words(words, NAMED)
