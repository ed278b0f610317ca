"""Kinds of terms, and models that may not use some of them."""

import json

import pytest
import torch
import torch.nn.functional as F

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.models.terms import KINDS, own_terms, terms_of_kinds

WORDS = "[PAD] [UNK] [CLS] [unused7] dog the ##s ##й 犬 . b2 café ## [x]".split()


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("special", {"[PAD]", "[UNK]", "[CLS]"}), ("unused", {"[unused7]"}), ("non_latin", {"##й", "犬"}),
        ("suffix", {"##s", "##й", "##"}), ("stop", {"the"}), ("sign", {".", "##"}),
    ],
)  # fmt: skip
def test_kinds(kind, wanted):
    found = terms_of_kinds({word: number for number, word in enumerate(WORDS)}, [kind], len(WORDS))
    assert {word for word, inside in zip(WORDS, found.tolist(), strict=True) if inside} == wanted


def test_own_terms_by_hand():
    ids, mask = torch.tensor([[1, 3, 3, 0], [2, 9, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert own_terms(ids, mask, 4).tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]  # 9 is a corner token, no term


def test_inactive_terms_have_no_weight_and_a_folder_knows_them(make_worded, make_config, tmp_path):
    free, model = make_worded(), make_worded(inactive_terms=["special", "stop"])
    texts, images = ["the red dot", "a box"], torch.rand(2, 3, 32, 32) * 2 - 1
    vocab = model.tokenizer.get_vocab()
    dead = [vocab[word] for word in ("[CLS]", "[PAD]", "the", "a", "on")]
    model.load_state_dict({**model.state_dict(), **free.state_dict()})
    assert not model.encode_text(texts)[:, dead].any() and not model.encode_image(images)[:, dead].any()
    plain = free.encode_text(texts, normalize=False)
    assert plain[:, dead].any()
    kept = plain.clone()
    kept[:, terms_of_kinds(vocab, ["special", "stop"], len(vocab))] = 0
    torch.testing.assert_close(model.encode_text(texts, normalize=False), kept)
    model.save_pretrained(tmp_path)
    loaded = LexLIP.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode_text(texts, normalize=False), kept)
    loaded.tokenizer = None
    torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "inactive_terms": ["nouns"]}))
    with pytest.raises(CheckpointError, match="inactive_terms"):
        LexLIP.from_pretrained(tmp_path)


def test_own_terms_weigh_by_their_number(make_worded):
    plain, model = make_worded(inactive_terms=["special"]), make_worded(inactive_terms=["special"], own_weights=True)
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    texts = ["red dot red", "box"]
    extra = model.encode_text(texts, normalize=False) - plain.encode_text(texts, normalize=False)
    vocab, numbers = model.tokenizer.get_vocab(), F.softplus(model.own_weights.detach())
    wanted = torch.zeros_like(extra)
    for row, words in enumerate((["red", "dot"], ["box"])):
        for word in words:
            wanted[row, vocab[word]] = numbers[vocab[word]]
    torch.testing.assert_close(extra, wanted)


def test_unknown_kinds_are_refused(make_keys):
    from lexlip.train.config import Config

    with pytest.raises(ConfigError, match="inactive_terms has 'nouns'; known are " + ", ".join(KINDS)):
        Config.checked(make_keys(inactive_terms=["stop", "nouns"]))
