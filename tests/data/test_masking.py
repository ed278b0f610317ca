"""Whole words are masked, in the right share, by BERT's rule, from the generator given."""

import numpy as np
import pytest

from lexlip_data.masking import IGNORED, Vocabulary, mask_words, read_vocabulary, word_numbers

# 0 [PAD] 1 [UNK] 2 [CLS] 3 [SEP] 4 [MASK], 5..29 words, 30..49 continuing pieces
SPECIAL = np.arange(50) < 5
VOCABULARY = Vocabulary(4, np.arange(50) >= 30, SPECIAL, np.flatnonzero(~SPECIAL))
IDS = np.array([2, 5, 30, 31, 6, 7, 32, 8, 3, 0, 0])


def test_word_numbers_by_hand():
    assert word_numbers(IDS, VOCABULARY).tolist() == [-1, 0, 0, 0, 1, 2, 2, 3, -1, -1, -1]
    assert word_numbers(IDS, VOCABULARY, whole_words=False).tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, -1, -1, -1]
    # a caption whose first piece continues a word that is not there; an unknown word in the middle
    assert word_numbers(np.array([2, 30, 1, 31, 5, 3]), VOCABULARY).tolist() == [-1, 0, -1, 1, 2, -1]


def test_whole_words_and_labels():
    words = word_numbers(IDS, VOCABULARY)
    for seed in range(200):
        masked, labels = mask_words(IDS, words, 0.5, VOCABULARY, np.random.default_rng(seed))
        chosen = labels != IGNORED
        assert len(set(words[chosen])) == 2 and -1 not in words[chosen]
        for word in set(words[chosen]):
            assert chosen[words == word].all()
        assert (labels[chosen] == IDS[chosen]).all()
        assert (masked[~chosen] == IDS[~chosen]).all()
        assert not np.isin(masked[chosen], [0, 1, 2, 3]).any()
    assert IDS.tolist() == [2, 5, 30, 31, 6, 7, 32, 8, 3, 0, 0]  # the input is left as it was


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10), (0.0, 0)])
def test_number_of_words(share, expected):
    ids = np.concatenate([[2], np.arange(5, 15), [3]])
    _, labels = mask_words(ids, word_numbers(ids, VOCABULARY), share, VOCABULARY, np.random.default_rng(0))
    assert (labels != IGNORED).sum() == expected


def test_shares_of_the_replacement_rule():
    ids = np.concatenate([[2], np.full(40000, 5), [3]])
    words = word_numbers(ids, VOCABULARY)
    masked, labels = mask_words(ids, words, 0.5, VOCABULARY, np.random.default_rng(0))
    chosen = labels != IGNORED
    assert chosen.sum() == 20000
    assert np.mean(masked[chosen] == 4) == pytest.approx(0.8, abs=0.01)
    # a random piece is the same piece once in 45
    assert np.mean(masked[chosen] == 5) == pytest.approx(0.1 + 0.1 / 45, abs=0.01)
    assert np.mean((masked[chosen] != 4) & (masked[chosen] != 5)) == pytest.approx(0.1, abs=0.01)


def test_determinism_and_empty_caption():
    words = word_numbers(IDS, VOCABULARY)
    one, two = (mask_words(IDS, words, 0.5, VOCABULARY, np.random.default_rng(7)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    empty = np.array([2, 3, 0])
    masked, labels = mask_words(empty, word_numbers(empty, VOCABULARY), 0.5, VOCABULARY, np.random.default_rng(0))
    assert (masked == empty).all() and (labels == IGNORED).all()


def test_words_agree_with_the_tokenizer(tokenizer):
    vocabulary = read_vocabulary(tokenizer)
    encoded = tokenizer("A woman in an overcoat, skateboards near unfinished mountains")
    ids = np.array(encoded["input_ids"])
    theirs = [-1 if word is None else word for word in encoded.word_ids()]
    assert word_numbers(ids, vocabulary).tolist() == theirs
    assert max(np.bincount(np.array(theirs)[np.array(theirs) >= 0])) > 1  # some word is in pieces
