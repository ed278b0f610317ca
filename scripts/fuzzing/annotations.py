"""Damage to JSON annotations: Karpathy's, GCC's, COCO's."""

from __future__ import annotations

import json
from pathlib import Path

from fuzzing.good import CAPTIONS, IMAGES, Rng, caption, cut, damages, encode, flip, zero

LAYOUTS = ("karpathy", "gcc", "coco-captions")


def good(layout: str, folder: Path, rng: Rng) -> tuple[Path, object]:
    """Write the images; returns where the annotations belong, and what they hold."""
    names = [f"{i}.png" for i in range(IMAGES)]
    images = folder / {"karpathy": "images", "gcc": "images_train/0", "coco-captions": "train2017"}[layout]
    images.mkdir(parents=True)
    for name in names:
        (images / name).write_bytes(encode(rng, "PNG"))
    if layout == "karpathy":
        entries = [
            {"filename": name, "split": "train", "sentences": [{"raw": caption(rng)} for _ in range(CAPTIONS)]}
            for name in names
        ]
        return folder / "dataset_mine.json", {"dataset": "mine", "images": entries}
    if layout == "gcc":
        return folder / "train_annot.json", [
            [f"images_train/0/{name}", caption(rng)] for name in names for _ in range(CAPTIONS)
        ]
    (folder / "annotations").mkdir()
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    captions = [{"image_id": i, "caption": caption(rng)} for i in range(IMAGES) for _ in range(CAPTIONS)]
    return folder / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions}


def positions(node: object) -> list[tuple[object, object]]:
    """(container, key) of everything inside a JSON value."""
    inside = []
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        inside.append((node, key))
        if isinstance(value, (dict, list)):
            inside += positions(value)
    return inside


def text_of(layout: str, content: object, rng: Rng) -> tuple[object, object]:
    """Where one caption stands."""
    words = {"karpathy": "raw", "coco-captions": "caption", "gcc": 1}[layout]
    texts = [(node, key) for node, key in positions(content) if key == words and isinstance(node[key], str)]
    return texts[int(rng.integers(len(texts)))]


def odd_value(rng: Rng) -> object:
    numbers = [None, True, -1, 1e308, 10**400]
    texts = ["", "x", "../../etc/passwd", "/", "\ud800", "a\0b"]
    values = [*numbers, *texts, [], {}, [[]], {"raw": 3}]
    return values[int(rng.integers(len(values)))]


def register(layout: str) -> None:
    @damages(layout, f"JSON of {layout}", "cut short", "flipped bytes", "zeroed", "UTF-16", "empty", "not JSON")
    def damaged_bytes(folder: Path, rng: Rng, how: str) -> None:
        path, content = good(layout, folder, rng)
        data = json.dumps(content).encode()
        path.write_bytes(
            {
                "cut short": lambda: cut(data, rng),
                "flipped bytes": lambda: flip(data, rng, 5),
                "zeroed": lambda: zero(data, rng),
                "UTF-16": lambda: data.decode().encode("utf-16"),
                "empty": lambda: b"",
                "not JSON": lambda: rng.bytes(1000),
            }[how]()
        )

    @damages(
        layout, f"JSON of {layout}", "value replaced", "value removed", "several replaced", "deeply nested",
        "half a character", "10 MB caption", "empty caption", "another top", "two images of one name",
    )  # fmt: skip
    def damaged_values(folder: Path, rng: Rng, how: str) -> None:
        path, content = good(layout, folder, rng)
        inside = positions(content)
        node, key = inside[int(rng.integers(len(inside)))]
        if how == "value replaced":
            node[key] = odd_value(rng)
        elif how == "several replaced":
            for i in rng.integers(len(inside), size=5):
                node, key = inside[int(i)]
                if key in node if isinstance(node, dict) else key < len(node):
                    node[key] = odd_value(rng)
        elif how == "value removed":
            del node[key]
        elif how == "two images of one name":
            entries = content if layout == "gcc" else content["images"]
            entries.append(json.loads(json.dumps(entries[int(rng.integers(len(entries)))])))
            if layout == "coco-captions":
                entries[-1]["file_name"] = "0.png" if entries[-1]["id"] else "1.png"
        elif how == "another top":
            content = odd_value(rng)
        elif how != "deeply nested":
            node, key = text_of(layout, content, rng)
            odd = {"half a character": "a \ud83d dog", "10 MB caption": "a dog " * 1_700_000, "empty caption": " "}
            node[key] = odd[how]
        text = json.dumps(content)
        if how == "deeply nested":
            text = "[" * 100_000 + text + "]" * 100_000
        path.write_text(text, encoding="utf-8")


for _layout in LAYOUTS:
    register(_layout)
