"""Zero-shot classification: prompts, words, truth, and the command."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexlip import LexLIP
from lexlip.classify.cli import _tell
from lexlip.classify.run import (
    Classified,
    accuracy,
    classify,
    label_vectors,
    read_lines,
    truth_of_folders,
    truth_of_table,
    word_vectors,
)
from lexlip.cli import main
from lexlip.errors import UserError


@pytest.fixture(scope="module")
def model():
    return LexLIP.from_pretrained("photos-small")


def test_a_label_is_the_mean_of_its_prompts(model):
    labels, templates = ["dog", "beach"], ["{}", "a photo of a {}."]
    vectors = label_vectors(model, labels, templates)
    mean = (model.encode_text(["dog"]) + model.encode_text(["a photo of a dog."]))[0]
    torch.testing.assert_close(vectors[0], mean / mean.norm())
    images = model.encode_text(["dogs run", "the beach and the water"])
    first, second = classify(images, ["x", "y"], labels, vectors, 1)
    assert (first.labels, second.labels) == (("dog",), ("beach",))
    assert first.scores[0] == pytest.approx(float(images[0] @ vectors[0]), abs=1e-6)


def test_words_alone_are_the_weights_of_the_image(model):
    image = torch.zeros(1, model.vocab_size)
    words = model.tokenizer.get_vocab()
    image[0, words["beach"]], image[0, words["dog"]] = 0.8, 0.6
    (found,) = classify(image, ["x"], ["dog", "beach", "dog beach"], word_vectors(model, ["dog", "beach", "dog beach"]))
    assert dict(zip(found.labels, found.scores)) == pytest.approx({"beach": 0.8, "dog beach": 0.7, "dog": 0.6})


def test_the_truth_and_how_often_it_is_met(tmp_path):
    labels = ["dog", "hot_air balloon", "cat"]
    assert truth_of_folders(["Dog/1.jpg", "x/hot air balloon/2.jpg", "3.jpg"], labels) == {
        "Dog/1.jpg": "dog", "x/hot air balloon/2.jpg": "hot_air balloon",
    }  # fmt: skip
    (tmp_path / "t.csv").write_text("image,label\na,b.jpg,dog\nc.jpg,cat\n")
    assert truth_of_table(tmp_path / "t.csv", labels) == {"a,b.jpg": "dog", "c.jpg": "cat"}
    results = [
        Classified("a", tuple("xyzuvw"), (1.0,) * 6),
        Classified("b", ("y",), (1.0,)),
        Classified("c", ("y",), ()),
    ]
    assert accuracy(results, {"a": "x", "b": "z"}) == {"top1": 0.5, "top5": 0.5, "images": 2}
    assert accuracy(results, {"a": "v"}) == {"top1": 0.0, "top5": 1.0, "images": 1}
    with pytest.raises(UserError, match="names none of the images"):
        accuracy(results, {"elsewhere": "x"})
    (tmp_path / "bad.tsv").write_text("a.jpg\tdog\nb.jpg\tbird\n")
    with pytest.raises(UserError, match="line 2: 'bird' is none of the labels"):
        truth_of_table(tmp_path / "bad.tsv", labels)


def test_names_are_no_commands_to_the_terminal(capsys):
    options = argparse.Namespace(images=Path("i"), json=False, k=1)
    _tell(options, [Classified("a\x1b[2J\nb.jpg", ("dog",), (1.0,))], {"c\x1b.jpg": "no\nimage"}, None)
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err and (output.out + output.err).count("\n") == 2


def test_labels_and_templates_that_cannot_be_used(tmp_path, model):
    (tmp_path / "twice.txt").write_text("dog\ncat\ndog\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("twice.txt", "'dog' twice"), ("empty.txt", "no labels"), ("none.txt", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_lines(tmp_path / name, "labels")
    (tmp_path / "many.txt").write_text("\n".join(map(str, range(30_000))))
    begin = time.process_time()
    assert len(read_lines(tmp_path / "many.txt", "labels")) == 30_000
    assert time.process_time() - begin < 1
    for template in ("a photo", "{} and {}", "{} {name}"):
        with pytest.raises(UserError, match="must stand in it once"):
            label_vectors(model, ["dog"], [template])


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dog/1.png", "beach/2.png", "3.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "no.jpg").write_bytes(b"no image")
    (tmp_path / "labels.txt").write_text("dog\nbeach\n")
    return tmp_path


def test_the_command(images, capsys, model):
    words = ["classify", "--images", str(images / "images"), "--labels", str(images / "labels.txt"), "--json"]
    assert main(words) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["accuracy"]["images"] == 2 and list(answer["broken"]) == ["no.jpg"] and "no.jpg" in output.err
    of_labels = label_vectors(model, ["dog", "beach"])
    scores = model.encode_image(images / "images" / "3.png") @ of_labels.T
    found = {image["name"]: image for image in answer["images"]}["3.png"]
    assert dict(zip(found["labels"], found["scores"])) == pytest.approx(
        dict(zip(["dog", "beach"], scores[0].tolist())), abs=1e-5
    )
    assert main(["classify", "--images", str(images / "images"), "-k", "3"]) == 0  # each image's own words
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(len(line.split(": ")[1].split("  ")) == 3 for line in lines)
    assert main([*words[:-1], "--words"]) == 0 and "top-1" in capsys.readouterr().out
    assert main(["classify", "--images", str(images / "images"), "--words"]) == 2
    assert "need --labels" in capsys.readouterr().err
