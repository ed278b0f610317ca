"""The four sets in their real folder structure, with images of one colour each."""

import json

import pytest
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), COLOURS[colour]).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def dci(tmp_path):
    """Two splits; the green image is told as blue."""
    root = tmp_path / "dci" / "densely_captioned_images"
    told = {"a": ("red", "red"), "b": ("green", "blue"), "c": ("blue", "blue")}
    for name, (colour, word) in told.items():
        paint(root / "photos" / f"{name}.png", colour)
        entry = {"image": f"{name}.png", "short_caption": word, "extra_caption": "It is.\nReally. "}
        write(root / "annotations" / f"{name}.json", json.dumps(entry))
    write(root / "splits.json", json.dumps({"train": ["a.json", "b.json"], "test": ["c.json"]}))
    return root.parent


@pytest.fixture
def iiw(tmp_path):
    """Five pairs in three parts, with both names of the image's field, with and without its ending."""
    root = tmp_path / "iiw"
    rows = [
        ("DOCCI_Test", "docci", "image", "one.jpg", "red"), ("DOCCI_Test", "docci", "image", "two", "green"),
        ("IIW-400", "docci_aar", "image/key", "three", "blue"), ("DCI_Test", "dci", "image", "four.jpg", "yellow"),
        ("DCI_Test", "dci", "image", "five.jpg", "red"),
    ]  # fmt: skip
    lines = {}
    for part, folder, key, name, colour in rows:
        paint(root / folder / f"{name.removesuffix('.jpg')}.jpg", colour)
        lines.setdefault(part, []).append(json.dumps({key: name, "IIW": f"All {colour}. Nothing else."}))
    for part, texts in lines.items():
        write(root / part / "data.jsonl", "\n".join(texts) + "\n")
    return root


@pytest.fixture
def share4v(tmp_path):
    """Four entries; the third is told as the second."""
    root, entries = tmp_path / "sa1b", []
    for number, (colour, word) in enumerate(
        [("red", "red"), ("green", "green"), ("blue", "green"), ("yellow", "yellow")]
    ):
        paint(root / "sa_000000" / "images" / f"sa_{number}.jpg", colour)
        turns = [{"from": "human", "value": "What is blue?"}, {"from": "gpt", "value": f"A</s>{word}\n"}]
        entries.append({"image": f"sa_000000/images/sa_{number}.jpg", "conversations": turns})
    write(tmp_path / "share4v_sam_10k.json", json.dumps(entries))
    return root, tmp_path / "share4v_sam_10k.json"


@pytest.fixture
def urban1k(tmp_path):
    """Three pairs; only the first line of a text counts."""
    root = tmp_path / "Urban1k"
    for name, colour in (("1", "red"), ("2", "green"), ("10", "blue")):
        paint(root / "image" / f"{name}.jpg", colour)
        write(root / "caption" / f"{name}.txt", f"A {colour} street. Cars.\nyellow\n")
    for name in ("image/._1.jpg", "caption/._1.txt"):  # of macOS
        (root / name).write_bytes(b"\0\x05\x16\x07\xff")
    return root
