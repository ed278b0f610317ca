"""Long texts of training pairs: from the column, or joined; whole, or some of their sentences."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.long_captions import long_texts


def source(longs, captions=("A dog .", "It runs. Fast.")):
    return SimpleNamespace(long_captions=lambda i: list(longs), captions=lambda i: list(captions))


def draw(longs, count=1, sub_captions=False, seed=0, **how):
    return long_texts(source(longs, **how), 0, count, sub_captions, np.random.default_rng(seed))


def test_long_captions_are_taken_whole_each_once_before_any_twice():
    assert draw(["One. Two.\nThree"]) == ["One. Two. Three"]
    texts = draw(["a", "b", "c"], count=5)
    assert sorted(texts[:3]) == ["a", "b", "c"] and texts[3:] == texts[:2]
    assert {tuple(draw(["a", "b", "c"], count=3, seed=seed)) for seed in range(40)} > {("a", "b", "c"), ("c", "b", "a")}


def test_without_long_captions_the_images_captions_are_joined():
    assert draw([]) == draw([" ", "."]) == ["A dog. It runs. Fast"]
    assert draw([], captions=["..."]) == ["..."]


def test_sub_captions_are_some_sentences_in_their_order():
    sentences = ["One", "Two", "Three", "Four"]
    seen = [draw([". ".join(sentences)], sub_captions=True, seed=seed)[0].split(". ") for seed in range(400)]
    assert all(parts == [one for one in sentences if one in parts] and parts for parts in seen)
    lengths = np.bincount([len(parts) for parts in seen], minlength=5)[1:]
    assert (lengths > 70).all()  # each of 1 to 4 about 100 times
    assert len({tuple(parts) for parts in seen}) == 15  # every choice comes up


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory, convert):
    """Four images with two captions each, the first two with long captions; as a table, and converted."""
    tmp_path = tmp_path_factory.mktemp("data")
    rng, lines = np.random.default_rng(0), ["title\tfilepath\timage_id\tlong_caption"]
    (tmp_path / "longs").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "longs" / f"{number}.png")
        for word in ("red", "blue"):
            long = f"the {word} dot. on a box" if number < 2 else ""
            lines.append(f"{word} ring {number}\t{number}.png\tp{number}\t{long}")
    (tmp_path / "longs" / "longs_train.tsv").write_text("\n".join(lines) + "\n")
    words = ["folder", "--table", str(tmp_path / "longs" / "longs_train.tsv"), "--name", "longs", "--split", "train"]
    assert convert.main([*words, "--out", str(tmp_path / "arrow")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])

    def module(root, **changes):
        keys = {
            "datasets": ["longs"], "data_root": str(tmp_path / root), "image_size": 32, "batch_size": 8,
            "per_gpu_batchsize": 8, "max_text_len": 12, "sentence_sep": True, "long_captions": 2, **changes,
        }  # fmt: skip
        return CaptionDataModule(keys, tokenizer), tokenizer

    return module


@pytest.mark.parametrize("root", ["", "arrow"], ids=["table", "arrow"])
def test_batches_hold_long_texts_beside_the_captions(data, root):
    module, tokenizer = data(root)
    batch = next(iter(module.train_dataloader()))
    rows, count, length = batch["long_ids"].shape
    assert (rows, count) == (8, 2) and batch["long_mask"].shape == batch["long_ids"].shape
    for row, (_, image_id, _) in enumerate(batch["sample"]):
        texts = {tokenizer.decode(ids[mask == 1]) for ids, mask in zip(batch["long_ids"][row], batch["long_mask"][row])}
        if image_id in ("p0", "p1"):
            assert texts == {f"[CLS] the {word} dot [SEP] on a box [SEP]" for word in ("red", "blue")}
        else:
            number = image_id[1]
            wanted = tokenizer(f"red ring {number} [SEP] blue ring {number}")["input_ids"]
            assert texts == {tokenizer.decode(wanted)}


def test_without_long_texts_batches_are_as_before(data):
    with_long, without = (data("", long_captions=count)[0] for count in (2, 0))
    one, two = next(iter(with_long.train_dataloader())), next(iter(without.train_dataloader()))
    assert set(one) - set(two) == {"long_ids", "long_mask"}
    assert torch.equal(one["image"], two["image"]) and torch.equal(one["text_ids"], two["text_ids"])


def test_the_parts_differ_from_epoch_to_epoch_and_not_from_run_to_run(data):
    def texts(epoch):
        module, _ = data("", sub_captions=True)
        module.train_sampler.set_epoch(epoch)
        batch = next(iter(module.train_dataloader()))
        order = sorted(range(8), key=lambda row: json.dumps(batch["sample"][row]))
        return [batch["long_ids"][row][batch["long_mask"][row] == 1].tolist() for row in order]

    assert texts(0) == texts(0)
    assert len({json.dumps(texts(epoch)) for epoch in range(4)}) == 4
