"""A vocabulary of one's own captions: the same every time, and what AutoTokenizer loads."""

import json

import numpy as np

from lexlip_data.convert.vocabulary import build_tokenizer, read_captions
from lexlip_data.errors import BrokenSample


def test_vocabulary(tmp_path):
    from transformers import AutoTokenizer

    captions = ["Red heart", "red apple", "green apple", "heart with arrow"] * 3
    sizes = [build_tokenizer(captions, tmp_path / str(k), vocab_size=60) for k in range(2)]
    names = {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "0").iterdir()} == names
    for name in names:  # the same every time
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "0")
    assert tokenizer.is_fast and len(tokenizer) == sizes[0] <= 60
    assert tokenizer.tokenize("RED apple") == ["red", "apple"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("red")["input_ids"]) == ["[CLS]", "red", "[SEP]"]
    assert tokenizer.decode(tokenizer("green heart")["input_ids"], skip_special_tokens=True) == "green heart"
    marked = [token["content"] for token in json.loads((tmp_path / "0/tokenizer.json").read_text())["added_tokens"]]
    assert marked == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)


def test_the_command_reads_the_training_captions_alone(tmp_path, make_folder, capsys, command):
    for split, word in (("train", "zebra"), ("val", "yak")):
        table = make_folder("mine", f"mine_{split}.tsv", images=3)
        table.write_text(table.read_text().replace("dog", word) + f"\timages/mine_{split}_0.jpg\t1000\n")
    out = tmp_path / "vocab"
    words = ["vocab", "--data", tmp_path, "--name", "mine", "--out", out, "--vocab-size", 300]
    command(*words)
    pieces = (out / "vocab.txt").read_text().split()
    assert "zebra" in pieces and "yak" not in pieces and "dog" not in pieces
    assert (
        f"vocabulary of {len(pieces)} word pieces, from 6 captions (1 unusable ones left out)"
        in capsys.readouterr().out
    )
    command(*words[:4], "absent", *words[5:], status=2)
    assert "none of absent has a split train" in capsys.readouterr().err


def test_broken_captions_are_left_out():
    class Odd:
        caption_counts = np.array([2, 1])
        left_out = []

        def caption(self, i, number):
            if number:
                raise BrokenSample("empty caption")
            return f"caption {i}"

    assert read_captions([Odd()]) == (["caption 0", "caption 1"], 1)
