"""lexlip cache: what is written is read, a run goes on where it was stopped, and what is refused."""

import json
import os
import pickle
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lexlip.cli import main
from lexlip.errors import EncodingError, FeaturesError
from lexlip.features.data import Pairs, read_data
from lexlip.features.store import FeatureStore
from lexlip.features.write import write_features
from lexlip.models.towers import TextFeatures


class ImageTower(torch.nn.Module):
    """Mean colours of each quarter, and more of them: (B, 2, 6)."""

    reference, width, tokens = "fake:quarters", 6, 2

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def preprocess(self, image):
        return self.transform(image)

    @staticmethod
    def transform(image):
        return torch.from_numpy(np.asarray(image.resize((8, 8))).copy()).permute(2, 0, 1).float() / 255

    def features(self, pixels):
        means = pixels.unflatten(2, (2, 4)).mean((3, 4))  # (B, 3, 2)
        return torch.cat([means, means.square()], 1).transpose(1, 2) * self.factor

    def facts(self):
        return {"reference": self.reference, "weights": f"{self.factor.item()}", "preprocessing": {"size": [8, 8]}}


class TextTower(torch.nn.Module):
    """A state for each word piece that tells which one it is, and where."""

    reference, width, pooled_width = "fake:pieces", 4, 1

    def __init__(self, lexicon):
        super().__init__()
        self.lexicon = self.tokenizer = lexicon

    def features(self, texts):
        pieces = [self.lexicon(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, pieces))
        terms = torch.tensor([ids + [0] * (longest - len(ids)) for ids in pieces])
        mask = torch.arange(longest) < torch.tensor(list(map(len, pieces)))[:, None]
        places = torch.arange(longest).expand_as(terms)
        states = torch.stack([terms, places, terms * 0.5, torch.ones_like(terms) * 7], 2).float()
        return TextFeatures(terms=terms, mask=mask, states=states, pooled=terms.sum(1, keepdim=True).float())

    def term_embeddings(self):
        return None

    def facts(self):
        return {"reference": self.reference, "weights": "w"}


def towers(tokenizer, factor=1.0):
    return ImageTower(factor), TextTower(AutoTokenizer.from_pretrained(tokenizer))


@pytest.fixture
def both(tiny_data):
    return towers(tiny_data["tokenizer"])


@pytest.fixture
def table(tiny_data):
    return tiny_data["root"] / "tiny" / "tiny_train.tsv"


@pytest.fixture
def cached(both, table, tmp_path):
    """A cache of 6 and 2 photos in shards of 5 rows."""
    write_features(tmp_path / "out", *both, read_data([table], held_out=0.25), batch_size=2, shard_rows=5)
    return tmp_path / "out"


def content(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_written_is_read(both, table, cached):
    image, text = both
    data = read_data([table], held_out=0.25)
    store = FeatureStore(cached)
    assert (store.image_tokens, store.image_width, store.text_width, store.pooled_width) == (2, 6, 4, 1)
    assert store.splits == ["train", "val"] and store.facts["image"] == image.facts()
    assert store.tokenizer.get_vocab() == text.lexicon.get_vocab()
    seen = set()
    for name, photos in (("train", 6), ("val", 2)):
        split, pairs = store.split(name), data[name]
        assert len(split.image_ids) == len(pairs) == photos and len(split.captions) == 2 * photos
        opened = [Image.open(table.parent / f"{id.replace('train', 'train_')}.png") for id in split.image_ids]
        wanted = image.features(torch.stack([image.preprocess(photo) for photo in opened])).half()
        rows = np.array([photos - 1, 0, 1, 0])
        assert torch.equal(split.images(rows), wanted[rows]) and split.images(rows).dtype == torch.float16
        assert split.captions == [pairs.caption(number) for number in range(2 * photos)]
        assert split.caption_image.tolist() == [number // 2 for number in range(2 * photos)]
        rows = [2 * photos - 1, 0, 2, 2]
        found, wanted = split.texts(rows), text.features([split.captions[row] for row in rows])
        assert torch.equal(found.mask, wanted.mask) and torch.equal(found.terms, wanted.terms)
        assert torch.equal(found.states, (wanted.states * wanted.mask[..., None]).half())
        assert torch.equal(found.pooled, wanted.pooled.half())
        seen |= set(split.image_ids)
    assert seen == {f"train{number}" for number in range(8)}
    assert split.images([]).shape == (0, 2, 6) and split.texts(torch.tensor([], dtype=torch.int64)).states.shape[0] == 0
    for rows in ([2], [-1]):
        with pytest.raises(IndexError, match="photo"):
            split.images(rows)
    with pytest.raises(FeaturesError, match="no split 'test'; its splits are train, val"):
        store.split("test")


def test_a_split_goes_to_other_processes(cached):
    split = FeatureStore(cached).split("train")
    data = pickle.dumps(split)
    assert len(data) < 1000
    assert torch.equal(pickle.loads(data).images([3, 1]), split.images([3, 1]))


def test_a_killed_run_goes_on(both, table, cached, tmp_path):
    """Killed while it writes captions: what is there is kept, and completed to the same bytes."""
    out, data, calls = tmp_path / "killed", read_data([table], held_out=0.25), []
    real = both[1].features

    def dying(texts):
        calls.append(texts)
        return os.kill(os.getpid(), signal.SIGKILL) if len(calls) > 5 else real(texts)

    if not (child := os.fork()):
        both[1].features = dying
        try:
            write_features(out, *both, data, batch_size=2, shard_rows=5)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    names = [str(path.relative_to(out)) for path in sorted(out.rglob("*.arrow"))]
    assert names == [
        f"train-{name}.arrow" for name in ("images/shard-00000", "images/shard-00001", "texts/shard-00000")
    ]
    with pytest.raises(FeaturesError, match="not finished: train-texts/shard-00001.arrow, of 3 shards"):
        FeatureStore(out)
    done = write_features(out, *both, data, batch_size=2, shard_rows=5)
    assert done.complete and (done.photos, done.captions, done.written, done.skipped) == (8, 16, 7 + 2 + 4, 0)
    assert content(out) == content(cached)


def test_two_processes_are_one(both, table, cached, tmp_path):
    data, out = read_data([table], held_out=0.25), tmp_path / "two"
    parts = [
        write_features(out, *both, data, batch_size=2, shard_rows=5, process=(rank, 2), workers=rank) for rank in (1, 0)
    ]
    assert [part.complete for part in parts] == [False, True] and sum(part.written for part in parts) == 24
    assert content(out) == content(cached)


def test_others_are_refused(both, tiny_data, table, cached):
    image, text = both
    data = read_data([table], held_out=0.25)
    options = {"batch_size": 2, "shard_rows": 5}
    with pytest.raises(EncodingError, match="was begun with image weights 1.0, not 2.0"):
        write_features(cached, ImageTower(2.0), text, data, **options)
    with pytest.raises(EncodingError, match="was begun with batch size 2, not 3"):
        write_features(cached, image, text, data, batch_size=3, shard_rows=5)
    with pytest.raises(EncodingError, match="begun with splits val data"):
        write_features(
            cached, image, text, {**data, "val": read_data([table], held_out=0.25, seed=1)["val"]}, **options
        )
    with pytest.raises(EncodingError, match="begun with splits names train, val, not train"):
        write_features(cached, image, text, {"train": data["train"]}, **options)
    other = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    other.add_tokens(["brandnew"])
    with pytest.raises(EncodingError, match="begun with (terms|vocabulary)"):
        write_features(cached, image, TextTower(other), data, **options)
    (cached / "features.json").unlink()
    with pytest.raises(FeaturesError, match="holds features of another run"):
        write_features(cached, ImageTower(2.0), text, data, **options)


def test_a_damaged_shard_is_named(cached, capsys):
    shard = cached / "train-images" / "shard-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FeaturesError, match="train-images/shard-00001.arrow is damaged"):
        FeatureStore(cached).split("train")
    assert FeatureStore(cached, verify=False).split("train").image_ids
    FeatureStore(cached).split("val")
    assert main(["cache", "--verify", "--out", str(cached)]) == 1
    out = capsys.readouterr().out
    assert "train-images/shard-00001.arrow is damaged" in out and "6 of 7 shards are what was written" in out
    shard.unlink()
    assert main(["cache", "--verify", "--out", str(cached)]) == 2
    assert "not finished: train-images/shard-00001.arrow" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train-images/shard-00000", "train-texts/shard-00001"])
def test_hostile_shards(cached, name):
    """Cut, of another place, or with bytes changed one by one and a checksum that agrees: an error or features."""
    from lexlip.features.layout import digest_of

    shard = cached / f"{name}.arrow"
    data, rng = shard.read_bytes(), np.random.default_rng(0)
    others = [path.read_bytes() for path in cached.rglob("*.arrow") if path != shard]
    changed = [b"", data[:-9], data[:300], *others]
    for place in rng.integers(0, len(data), 60):
        changed.append(data[:place] + bytes([data[place] ^ int(rng.integers(1, 256))]) + data[place + 1 :])
    refused = 0
    for number, bad in enumerate(changed):
        shard.write_bytes(bad)
        shard.with_suffix(".json").write_text(json.dumps(digest_of(shard)))
        try:
            split = FeatureStore(cached, verify=False).split("train")
            split.images(range(len(split.image_ids)))
            split.texts(range(len(split.captions)))
        except FeaturesError as error:
            assert str(shard) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert number >= 3 + len(others)
    assert refused > 3 + len(others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"splits": {"../x": {"images": 1, "texts": 1}}}, "splits"),
        ({"splits": []}, "cannot be used"),
        ({"widths": {"tokens": 1 << 60, "image": 1, "text": 1, "pooled": 1}}, "whole number"),
        ({"shard_rows": {"images": 1 << 40, "texts": 5}}, "whole number"),
        ({"terms": 3}, "a word piece is"),
        ({"run": "other"}, "another run"),
    ],
)
def test_hostile_facts(cached, change, message):
    facts = cached / "features.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), **change}))
    with pytest.raises(FeaturesError, match=message):
        FeatureStore(cached).split("train")
    facts.write_text("[" * 5000)
    with pytest.raises(FeaturesError, match="features.json cannot be read"):
        FeatureStore(cached)


def test_broken_photos_and_captions_are_left_out(both, tmp_path):
    (tmp_path / "in").mkdir()
    lines = ["title\tfilepath\timage_id"]
    for number in range(12):
        Image.new("RGB", (20, 16), (number * 9, 7, 9)).save(tmp_path / "in" / f"{number}.png")
        lines += [f"red dot beside {word}\t{number}.png\tid{number}" for word in ("a box", "a ring")]
    (tmp_path / "in" / "3.png").write_bytes(b"no photo")
    (tmp_path / "in" / "7.png").unlink()
    (tmp_path / "in" / "t.tsv").write_text("\n".join(lines) + "\n")
    data = read_data([tmp_path / "in" / "t.tsv"], held_out=0)
    done = write_features(tmp_path / "out", *both, data, shard_rows=4, batch_size=3)
    split = FeatureStore(tmp_path / "out").split("train")
    assert done.skipped == 2 and split.image_ids == [f"id{n}" for n in range(12) if n not in (3, 7)]
    assert len(split.captions) == 20 and [split.image_ids[i] for i in split.caption_image] == [
        f"id{n}" for n in range(12) if n not in (3, 7) for _ in range(2)
    ]
    assert split.captions[7].endswith("ring") and split.texts([7]).terms[0, -1] == both[1].lexicon.vocab["ring"]
    listed = (tmp_path / "out" / "train-images" / "skipped_samples.tsv").read_text()
    assert "id3\t" in listed and "id7\t" in listed and "missing" in listed
    few = {"train": Pairs(data["train"].sources, np.array([2, 3]))}
    with pytest.raises(EncodingError, match="1 of 2 documents cannot be used"):
        write_features(tmp_path / "few", *both, few)


def test_numbers_that_half_precision_cannot_hold(both, table, tmp_path):
    image, text = both
    for factor in (float("nan"), 1e6):
        with pytest.raises(FeaturesError, match=r"features of 'train\d' reach .* 65,504"):
            write_features(tmp_path / str(factor), ImageTower(factor), text, read_data([table]))
    assert not list(tmp_path.rglob("*.arrow"))


def test_the_held_out_split_is_of_whole_photos(table, tiny_data, tmp_path):
    first = read_data([table], held_out=0.25)
    names = {split: [pairs.image_name(n) for n in range(len(pairs))] for split, pairs in first.items()}
    assert len(names["val"]) == 2 and len(names["train"]) == 6 and not set(names["val"]) & set(names["train"])
    for pairs in first.values():
        for photo, caption in pairs.read(0, len(pairs.caption_image)):
            assert f"{caption}\t{pairs.image_name(photo).replace('train', 'train_')}.png" in table.read_text()
    lines = table.read_text().splitlines()
    (table.parent / "turned.tsv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")  # another order, same photos
    turned = read_data([table.parent / "turned.tsv"], held_out=0.25)["val"]
    assert sorted(turned.image_name(n) for n in range(2)) == sorted(names["val"])
    others = [read_data([table], held_out=0.25, seed=seed)["val"].fingerprint() for seed in range(5)]
    assert len(set(others)) > 1
    for share, message in ((1.0, "--held-out 1"), (-1, "--held-out -1"), (0.99, "too few")):
        with pytest.raises(FeaturesError, match=message):
            read_data([table], held_out=share)


def test_what_data_may_be(tiny_data, table, tmp_path):
    def photos(*arguments, **options):
        return {split: len(pairs) for split, pairs in read_data(*arguments, **options).items()}

    root = tiny_data["root"]
    assert photos([table], table.parent / "tiny_val.tsv", held_out=0.5) == {"train": 8, "val": 4}
    assert photos(["tiny"], data_root=root) == {"train": 8, "val": 4, "test": 4}
    lines = table.read_text().splitlines()
    splits = ["split", *(["train"] * 8 + ["val"] * 4 + ["restval"] * 4)]
    own = table.parent / "own.tsv"
    own.write_text("\n".join(f"{line}\t{split}" for line, split in zip(lines, splits)) + "\n")
    assert photos([own]) == {"train": 6, "val": 2}
    assert photos([table], own, held_out=0) == {"train": 8, "val": 2}
    images = [
        {"filename": f"train_{n}.png", "split": split, "sentences": [{"raw": "red dot"}, {"raw": "box"}]}
        for n, split in enumerate(["train", "restval", "test", "val"])
    ]
    (tmp_path / "k.json").write_text(json.dumps({"dataset": "x", "images": images}))
    assert photos([tmp_path / "k.json"], images=table.parent) == {"train": 2, "val": 1, "test": 1}


def test_the_command_line(both, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lexlip.models.towers.load_image_tower", lambda reference, **_: both[0])
    monkeypatch.setattr("lexlip.models.towers.load_text_tower", lambda reference, lexicon=None, **_: both[1])
    out = str(tmp_path / "out")
    command = ["cache", "--data", str(table), "--image", "a", "b", "--text", "t", "--out", out, "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("less than a minute for 8 photos and 16 captions, ") and "on disk" in printed[0]
    assert re.fullmatch(r"8 photos \(train 7, val 1\) and 16 captions, 24 rows now, [\d,.]+ photos/s", printed[1])
    assert main(command) == 0 and "captions, 0 rows now\n" in capsys.readouterr().out
    assert main(["cache", "--verify", "--out", out]) == 0
    assert main(["cache", "--out", out, "--data", str(table)]) == 2
    assert "--image is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_real_towers_through_the_command(tiny_data, table, tmp_path, capsys):
    """Two image towers side by side and a BERT, decoded by a worker: what is cached is what they give by themselves."""
    import timm
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    from lexlip.models.towers import load_image_tower, load_text_tower

    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "r.safetensors")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=tiny_data["words"], **small)).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_data["tokenizer"]).save_pretrained(tmp_path / "bert")
    images, text, out = [f"timm:resnet10t@{tmp_path}/r.safetensors"] * 2, f"hf:{tmp_path}/bert", tmp_path / "out"
    options = ["--image", *images, "--text", text, "--out", str(out), "--workers", "1", "--device", "cpu"]
    assert main(["cache", "--data", str(table), *options]) == 0, capsys.readouterr().err
    split = FeatureStore(out).split("train")
    tower, texts = load_image_tower(images), load_text_tower(text).features(split.captions[:5])
    photo = Image.open(table.parent / f"{split.image_ids[2].replace('train', 'train_')}.png")
    wanted = tower.features(tower.preprocess(photo)[None])
    assert wanted.shape[2] == split.store.image_width == 1024
    torch.testing.assert_close(split.images([2]).float(), wanted, rtol=1e-3, atol=1e-3)
    found = split.texts(range(5))
    assert torch.equal(found.terms, texts.terms)
    torch.testing.assert_close(found.states.float(), texts.states, rtol=1e-2, atol=1e-3)


def test_captions_that_the_lexicon_does_not_know(both, table, tmp_path, caplog):
    rows = table.read_text(encoding="utf-8").splitlines()
    unknown = [rows[0], *("\t".join(["\u732b\u3068\u72ac", *row.split("\t")[1:]]) for row in rows[1:])]
    other = table.with_name("other.tsv")
    other.write_text("\n".join(unknown) + "\n", encoding="utf-8")
    write_features(tmp_path / "known", *both, read_data([table]))
    assert "unknown to the tokenizer" not in caplog.text
    write_features(tmp_path / "out", *both, read_data([other]))
    assert "of the captions' tokens are unknown to the tokenizer" in caplog.text
