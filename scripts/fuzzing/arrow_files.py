"""Damage to Arrow files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from fuzzing.good import CAPTIONS, FORMATS, IMAGES, Rng, caption, cut, damages, encode, flip, zero

ROWS_PER_BATCH = 4


def good(rng: Rng, n: int = IMAGES) -> dict[str, pa.Array]:
    images = [encode(rng, FORMATS[i % len(FORMATS)]) for i in range(n)]
    return {
        "image": pa.array(images, pa.binary()),
        "caption": pa.array([[caption(rng) for _ in range(CAPTIONS)] for _ in range(n)], pa.list_(pa.string())),
        "image_id": pa.array([f"{i}.jpg" for i in range(n)]),
        "split": pa.array(["train"] * n),
    }


def write(
    folder: Path,
    columns: dict[str, pa.Array],
    stream: bool = False,
    name: str = "mine_{}.arrow",
    rows: int = ROWS_PER_BATCH,
    metadata: dict | None = None,
) -> None:
    """As the converter writes, with `metadata` in place of its own, or (None) as another program does."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        own = {"name": "mine", "split": split, "fingerprint": "f", "shard": 0, "shards": 1, "listed": IMAGES}
        own = {**own, **(metadata or {})}
        schema = {b"lexlip": json.dumps(own)} if metadata is not None else None
        table = pa.table(columns).replace_schema_metadata(schema)
        with pa.OSFile(str(folder / name.format(split)), "wb") as sink:
            with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=rows)


def each_file(folder: Path, change) -> None:
    data = (folder / "mine_train.arrow").read_bytes()
    for split in ("train", "test"):
        (folder / f"mine_{split}.arrow").write_bytes(change(data))


def headers(data: bytes, rng: Rng) -> bytes:
    """Flip bytes outside the images: near the batches' headers, whose metadata begin with eight known bytes."""
    marks, at = [], data.find(b"\xff\xff\xff\xff")
    while at >= 0:
        marks.append(at)
        at = data.find(b"\xff\xff\xff\xff", at + 1)
    mark = int(rng.choice(marks or [0]))
    return flip(data, rng, 8, mark, min(len(data), mark + 700))


@damages(
    "arrow", "Arrow bytes", "cut short", "end cut off", "flipped bytes", "flipped header", "flipped footer", "zeroed",
    "empty", "random bytes", "stream", "pipe", "folder", "two in one",
)  # fmt: skip
def damaged_bytes(folder: Path, rng: Rng, how: str) -> None:
    write(folder, good(rng), stream=how == "stream", metadata={} if rng.integers(2) else None)
    changes = {
        "cut short": lambda data: cut(data, rng),
        "end cut off": lambda data: data[: -int(rng.integers(1, 200))],
        "flipped bytes": lambda data: flip(data, rng),
        "flipped header": lambda data: headers(data, rng),
        "flipped footer": lambda data: flip(data, rng, 8, len(data) - 1200),
        "zeroed": lambda data: zero(data, rng),
        "empty": lambda data: b"",
        "random bytes": lambda data: b"ARROW1\0\0" + rng.bytes(5000) + b"ARROW1",
        "two in one": lambda data: data + data,
    }
    if how in changes:
        each_file(folder, changes[how])
    for split in ("train", "test") if how in ("pipe", "folder") else ():
        path = folder / f"mine_{split}.arrow"
        path.unlink()
        os.mkfifo(path) if how == "pipe" else path.mkdir()


@damages("arrow", "Arrow metadata", "shard", "shards", "listed", "name", "split", "fingerprint", "all")
def metadata(folder: Path, rng: Rng, how: str) -> None:
    values = [None, -1, 2, 10**12, 10**30, "x", "../../x", [], {}, 0.5, True, "\ud800", "a\nb", "9" * 10_000]
    keys = ("shard", "shards", "listed", "name", "split", "fingerprint") if how == "all" else (how,)
    write(folder, good(rng), metadata={key: values[int(rng.integers(len(values)))] for key in keys})


@damages("arrow", "Arrow offsets", "images", "captions", "texts", "ids")
def offsets(folder: Path, rng: Rng, how: str) -> None:
    """One offset points elsewhere: outside, backwards, or into another row."""
    columns = good(rng)
    arrays = {
        "images": columns["image"], "captions": columns["caption"], "texts": columns["caption"].values,
        "ids": columns["image_id"],
    }  # fmt: skip
    numbers = np.frombuffer(arrays[how].buffers()[1], dtype=np.int32)[: len(arrays[how]) + 1]
    values = [-1, 2**31 - 1, -(2**31), int(numbers[-1]) + 1, 0, int(rng.integers(2**31))]
    changed = numbers.copy()
    changed[int(rng.integers(len(changed)))] = values[int(rng.integers(len(values)))]
    write(folder, columns, rows=IMAGES)  # in one batch, so that the offsets stand in the file as they are here
    each_file(folder, lambda data: data.replace(numbers.tobytes(), changed.tobytes(), 1))


@damages(
    "arrow", "Arrow schema", "no caption", "no image", "no id", "caption of numbers", "caption of lists of numbers",
    "caption of structs", "caption plain", "image of text", "image of lists", "id of floats", "id of numbers",
    "id a list", "column twice", "nothing in it", "compressed", "dictionary", "large types",
    "long captions of numbers", "shard missing",
)  # fmt: skip
def schema(folder: Path, rng: Rng, how: str) -> None:
    columns = good(rng)
    n = IMAGES
    replaced = {
        "caption of numbers": ("caption", pa.array(range(n))),
        "caption of lists of numbers": ("caption", pa.array([[1, 2]] * n)),
        "caption of structs": ("caption", pa.array([{"raw": "a"}] * n)),
        "caption plain": ("caption", pa.array([caption(rng) for _ in range(n)])),
        "image of text": ("image", pa.array(["a"] * n)),
        "image of lists": ("image", pa.array([[1, 2]] * n, pa.list_(pa.uint8()))),
        "id of floats": ("image_id", pa.array(np.arange(n) / 2)),
        "id of numbers": ("image_id", pa.array(range(n))),
        "id a list": ("image_id", pa.array([["a"]] * n)),
        "dictionary": ("image_id", columns["image_id"].dictionary_encode()),
        "large types": ("caption", columns["caption"].cast(pa.large_list(pa.large_string()))),
        "long captions of numbers": ("long_caption", pa.array(range(n))),
    }
    if how in replaced:
        name, array = replaced[how]
        columns[name] = array
    elif how.startswith("no ") and how != "nothing in it":
        del columns[{"no caption": "caption", "no image": "image", "no id": "image_id"}[how]]
    elif how == "nothing in it":
        columns = {name: array[:0] for name, array in columns.items()}
    if how == "shard missing":
        for k in (0, 2) if rng.integers(2) else (1, 2):
            write(folder, columns, name=f"mine_{{}}_{k}.arrow")
        return
    write(folder, columns)
    if how == "compressed":
        for split in ("train", "test"):
            feather.write_feather(pa.table(columns), folder / f"mine_{split}.arrow", compression="zstd", chunksize=4)
    if how == "column twice":
        doubled = str(rng.choice(["image_id", "caption"]))
        table = pa.table([*columns.values(), columns[doubled]], names=[*columns, doubled])
        for split in ("train", "test"):
            with pa.OSFile(str(folder / f"mine_{split}.arrow"), "wb") as sink:
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)


@damages(
    "arrow", "Arrow cells", "null image", "null caption", "null in captions", "null id", "empty caption",
    "10 MB caption", "caption not UTF-8", "id not UTF-8", "ids all the same", "10 MB id", "empty image",
    "cut image",
)  # fmt: skip
def cells(folder: Path, rng: Rng, how: str) -> None:
    columns = good(rng)
    at = int(rng.integers(IMAGES))
    images, captions, ids = (columns[name].to_pylist() for name in ("image", "caption", "image_id"))
    number = int(rng.integers(CAPTIONS))
    text, name = pa.string(), pa.string()
    if how in ("null image", "empty image", "cut image"):
        images[at] = {"null image": None, "empty image": b"", "cut image": cut(images[at], rng)}[how]
    elif how == "null caption":
        captions[at] = None
    elif how in ("null in captions", "empty caption", "10 MB caption"):
        captions[at][number] = {"null in captions": None, "empty caption": "", "10 MB caption": "a dog " * 1_700_000}[
            how
        ]
    elif how == "caption not UTF-8":
        captions = [[words.encode() for words in row] for row in captions]
        captions[at][number] = b"a \xff dog"
        text = pa.binary()
    elif how == "id not UTF-8":
        ids = [each.encode() for each in ids]
        ids[at] = b"\xff.jpg"
        name = pa.binary()
    else:
        ids = ["same"] * IMAGES if how == "ids all the same" else ids
        ids[at] = {"null id": None, "10 MB id": "9" * 10_000_000}.get(how, ids[at])
    columns["image"] = pa.array(images, pa.binary())
    columns["caption"] = pa.array(captions, pa.list_(text)).view(pa.list_(pa.string()))
    columns["image_id"] = pa.array(ids, name).view(pa.string())
    write(folder, columns)
