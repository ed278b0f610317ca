"""lexlip explain: what it prints and draws is what `attribute` and `attribute_text` say."""

import numpy as np
import pytest
from PIL import Image

from lexlip.cli import main
from lexlip.explain.heat import DARKEST, figure, shaded
from lexlip.models.attribution import Box


@pytest.fixture
def folder(make_worded, tmp_path):
    model = make_worded()
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path, model.eval()


def test_an_image(folder, capsys):
    root, model = folder
    words = ["red", "dot"]
    command = ["explain", "--model", str(root / "model"), "--image", str(root / "a.png")]
    assert main([*command, "--words", "red, dot", "--out", str(root / "heat.png")]) == 0
    maps, vector = model.attribute(root / "a.png", words), model.encode_image(root / "a.png", normalize=False)[0]
    lines = capsys.readouterr().out.splitlines()
    for line, word, map in zip(lines, words, maps, strict=True):
        row, column = divmod(int(map.argmax()), 4)
        weight = float(vector[model.tokenizer.get_vocab()[word]])
        assert line == f"{weight:.4f}  {word}  row {row + 1} of 4, column {column + 1} of 4"
    assert Image.open(root / "heat.png").width > 3 * 64
    assert main(command) == 0
    heaviest = [word for word, _ in model.lexicon(vector[None], 5)[0]]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == heaviest


def test_a_text(folder, capsys):
    root, model = folder
    assert main(["explain", "--model", str(root / "model"), "--text", "red dot", "--words", "blue"]) == 0
    found = model.attribute_text("red dot", "blue")
    first, *pieces = capsys.readouterr().out.splitlines()
    assert first == f"{float(found.weights.max()):.4f}  blue  (the largest of)"
    wanted = {piece: f"{value:.4f}" for piece, value in zip(found.pieces, found.weights[0].tolist()) if value}
    assert {line.split()[1]: line.split()[0] for line in pieces} == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none.png"], "none.png: no such file"),
        (["--image", "model/config.json"], "is no image that can be read"),
        (["--image", "a.png", "--words", "nonesuch"], "'nonesuch' is no term of this model's vocabulary"),
        (["--image", "a.png", "--words", ""], "'' is no term"),
        (["--image", "a.png", "--out", "heat.gif"], "must end in .png or .jpg"),
        (["--image", "a.png", "--out", "none/heat.png"], "there is no folder"),
        (["--text", "red", "--out", "heat.png"], "--out: heat maps are of an --image"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folder[0])
    assert main(["explain", "--model", "model", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_bright():
    white = Image.new("RGB", (80, 40), "white")
    weights = np.zeros((2, 2))
    weights[1, 0] = 3.0
    # The grid covers the middle square; its lower left cell is (20..40, 20..40).
    pixels = np.asarray(shaded(white, weights, Box(0.25, 0.0, 0.75, 1.0))).astype(int)[..., 0]
    dark = round(255 * (1 - DARKEST))
    assert pixels[34, 25] > 240 and abs(pixels[5, 55] - dark) < 12 and abs(pixels[20, 5] - dark) < 12
    nothing = np.asarray(shaded(white, np.zeros((2, 2)), Box(0, 0, 1, 1)))
    assert nothing.max() <= dark + 12
    two = figure(white, ["a", "b"], np.stack([weights, weights]), Box(0, 0, 1, 1))
    assert two.width == 3 * (80 + 12) + 12
