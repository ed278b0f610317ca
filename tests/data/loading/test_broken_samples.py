"""Samples that cannot be used: left out, counted and named in training, an error in evaluation."""

import pyarrow as pa
import pytest

from lexlip_data.errors import BrokenImage, BrokenSample
from lexlip_data.loading.collate import Collator
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.datasets import EvalTexts
from lexlip_data.sources.registry import open_split


def test_broken_images_are_skipped_and_counted_in_training(mine, config, tokenizer):
    (mine / "images" / "mine_train_2.jpg").write_bytes(b"broken")
    (mine / "images" / "mine_train_5.jpg").unlink()
    (mine / "images" / "mine_val_1.jpg").unlink()
    (mine / "images" / "mine_test_1.jpg").write_bytes(b"broken")
    module = CaptionDataModule({**config, "batch_size": 14}, tokenizer, mlm=True)
    (batch,) = module.train_dataloader()
    assert len(batch["sample"]) == len(batch["image"]) == len(batch["text_ids"]) == len(batch["image_id"]) == 10
    assert len(batch["skipped"]) == 4
    assert sorted({text.split(":")[0] for text in batch["skipped"]}) == ["mine/1002", "mine/1005"]
    assert any("No such file" in text for text in batch["skipped"])
    with pytest.raises(BrokenImage, match="image 1001: .*mine_val_1.jpg.*row 3"):
        list(module.val_dataloader()[0])
    with pytest.raises(BrokenImage, match="split test, image 1001"):
        list(module.test_dataloader()[0])
    pairs = CaptionDataModule({**config, "get_recall_metric": False}, tokenizer, mlm=True)
    with pytest.raises(BrokenImage, match="image 1001"):
        list(pairs.val_dataloader()[0])


@pytest.fixture
def save_odd(tmp_path, jpeg, save):
    """save_odd(split): an Arrow file of seven images, five of which have something that cannot be used."""
    captions = [[b"a dog"], [b"a cat", None], [b"\xff"], [b" "], [b"a dog " * 2_000_000], [b"x"], [b"y"]]
    ids = [b"0", b"1", b"2", b"3", b"4", b"\xff", b"6"]
    table = pa.table({
        "image": pa.array([jpeg(i) for i in range(6)] + [None], pa.binary()),
        "caption": pa.array(captions, pa.list_(pa.binary())).view(pa.list_(pa.string())),
        "image_id": pa.array(ids, pa.binary()).view(pa.string()),
    })  # fmt: skip
    return lambda split: save(tmp_path / f"odd_{split}.arrow", table)


def test_whatever_is_broken_in_a_sample_is_skipped_and_named(tmp_path, save_odd, config, tokenizer):
    save_odd("train")
    module = CaptionDataModule({**config, "datasets": ["odd"], "batch_size": 8}, tokenizer, mlm=True)
    (batch,) = module.train_dataloader()
    assert sorted(image_id for _, image_id, _ in batch["sample"]) == ["0", "1"]
    assert len(batch["text_ids"]) == len(batch["image"]) == 2
    where = f"odd/[{tmp_path}/odd_train.arrow, record batch 0, row 5]"
    assert sorted(batch["skipped"]) == sorted([
        "odd/1: caption is null", "odd/2: caption is not UTF-8 text (invalid start byte)", "odd/3: empty caption",
        "odd/4: caption of 12,000,000 bytes, 10,000 characters are allowed", "odd/6: the image cell is null",
        f"{where}: image_id is not UTF-8 text (invalid start byte)",
    ])  # fmt: skip


def test_whatever_is_broken_in_evaluation_is_an_error_with_file_and_row(tmp_path, save_odd, config, tokenizer):
    save_odd("test")
    module = CaptionDataModule({**config, "datasets": ["odd"]}, tokenizer)
    place = r"odd_test.arrow, record batch 0, row {}\]; evaluation replaces nothing"
    with pytest.raises(BrokenSample, match="image_id is not UTF-8.*" + place.format(5)):
        module.test_dataloader()
    texts = EvalTexts(open_split(tmp_path, "odd", "test"))
    for order, (message, row) in enumerate(
        [("", 0), ("", 1), ("image 1: caption is null", 1), ("image 2: caption is not UTF-8", 2), ("empty", 3)]
    ):
        if not message:
            assert texts[order]["caption"] in ("a dog", "a cat")
            continue
        with pytest.raises(BrokenSample, match=f"data set odd, split test, .*{message}.*" + place.format(row)):
            texts[order]


def test_images_outside_the_data_root(mine, tmp_path, config, tokenizer):
    (tmp_path / "root").mkdir()
    mine.rename(tmp_path / "root" / "mine")
    images = tmp_path / "root" / "mine" / "images"
    (images / "mine_train_2.jpg").rename(tmp_path / "p.jpg")
    (images / "mine_train_2.jpg").symlink_to(tmp_path / "p.jpg")
    config = {**config, "data_root": str(tmp_path / "root"), "batch_size": 14}
    (batch,) = CaptionDataModule(config, tokenizer).train_dataloader()
    assert len(batch["sample"]) == 12 and all("leads out of" in line for line in batch["skipped"])
    (batch,) = CaptionDataModule({**config, "picture_roots": [str(tmp_path)]}, tokenizer).train_dataloader()
    assert len(batch["sample"]) == 14
    # A data set's folder, or the data root itself, may be a link.
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine").symlink_to(tmp_path / "root" / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "links")
    for root in ("links", "link"):
        (batch,) = CaptionDataModule({**config, "data_root": str(tmp_path / root)}, tokenizer).train_dataloader()
        assert len(batch["sample"]) == 12


def test_a_batch_of_broken_images_only(tokenizer):
    batch = Collator(tokenizer, 24, 16, mlm=True)([{"skipped": "a/1: gone"}, {"skipped": "a/2: gone"}])
    assert batch["image"].shape == (0, 3, 16, 16) and batch["skipped"] == ["a/1: gone", "a/2: gone"]
    assert batch["text_ids"].shape == batch["decoder_labels"].shape == (0, 2) and batch["image_id"].shape == (0,)
