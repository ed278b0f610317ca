"""Captions that a tokenizer does not know are told of before training, others are not."""

import logging

import pytest

from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.unknown_words import unknown_ratio, unknown_warning


def test_ratio(tokenizer):
    assert unknown_ratio(["the cat sleeps"], tokenizer) == 0 and unknown_ratio([], tokenizer) == 0
    assert unknown_ratio(["the cat 猫 猫"], tokenizer) == 0.5
    assert unknown_warning(["the cat sleeps"] * 3, tokenizer, "here") is None
    message = unknown_warning(["قطة نائمة", "猫"], tokenizer, "here")
    assert message.startswith("here: 100% of the captions' tokens are unknown") and "convert.py vocab" in message


def test_a_tokenizer_that_knows_everything():
    class Bytes:
        unk_token_id = None

    assert unknown_ratio(["猫"], Bytes()) == 0


@pytest.mark.parametrize("known", [True, False])
def test_it_is_told_before_training(mine, config, tokenizer, caplog, known):
    if not known:
        path = mine / "mine_train.tsv"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *("猫 狗 " + row[row.index("\t") :] for row in rows)]) + "\n")
    with caplog.at_level(logging.WARNING):
        CaptionDataModule(config, tokenizer).setup("fit")
    assert ("data set mine, train: 100% of the captions' tokens are unknown" in caplog.text) is not known
