"""Whole words are masked, in the right ratio, by BERT's rule, from the sample's seed."""

import numpy as np
import pytest

from lexlip_data.loading.masking import IGNORED, Vocabulary, mask_words, read_vocabulary, word_numbers

# 0 [PAD] 1 [UNK] 2 [CLS] 3 [SEP] 4 [MASK], 5..29 words, 30..49 continuing pieces
SPECIAL = np.arange(50) < 5
VOCABULARY = Vocabulary(4, np.arange(50) >= 30, SPECIAL, np.flatnonzero(~SPECIAL))
IDS = np.array([2, 5, 30, 31, 6, 7, 32, 8, 3, 0, 0])


def one(ids, fraction, seed=0, part=0):
    """(masked, labels) of one caption."""
    ids = np.asarray(ids)[None]
    masked, labels = mask_words(ids, word_numbers(ids, VOCABULARY), fraction, VOCABULARY, np.array([seed]), part)
    return masked[0], labels[0]


def test_word_numbers_by_hand():
    # second: a caption whose first piece continues a word that is not there; an unknown word in the middle
    ids = np.array([IDS, [2, 30, 1, 31, 5, 3, 0, 0, 0, 0, 0]])
    wanted = [[-1, 0, 0, 0, 1, 2, 2, 3, -1, -1, -1], [-1, 0, -1, 1, 2, -1, -1, -1, -1, -1, -1]]
    assert word_numbers(ids, VOCABULARY).tolist() == wanted
    assert word_numbers(ids, VOCABULARY, whole_words=False)[0].tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, -1, -1, -1]


def test_whole_words_and_labels():
    words = word_numbers(IDS[None], VOCABULARY)[0]
    seen = set()
    for seed in range(200):
        masked, labels = one(IDS, 0.5, seed)
        chosen = labels != IGNORED
        assert len(set(words[chosen])) == 2 and -1 not in words[chosen]
        for word in set(words[chosen]):
            assert chosen[words == word].all()
        assert (labels[chosen] == IDS[chosen]).all()
        assert (masked[~chosen] == IDS[~chosen]).all()
        assert not np.isin(masked[chosen], [0, 1, 2, 3]).any()
        seen.add(tuple(sorted(set(words[chosen]))))
    assert len(seen) == 6  # every pair of the four words
    assert IDS.tolist() == [2, 5, 30, 31, 6, 7, 32, 8, 3, 0, 0]  # the input is left as it was


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10), (0.0, 0)])
def test_number_of_words(fraction, expected):
    _, labels = one(np.concatenate([[2], np.arange(5, 15), [3]]), fraction)
    assert (labels != IGNORED).sum() == expected


def test_ratios_of_the_replacement_rule():
    masked, labels = one(np.concatenate([[2], np.full(40000, 5), [3]]), 0.5)
    chosen = labels != IGNORED
    assert chosen.sum() == 20000
    assert np.mean(masked[chosen] == 4) == pytest.approx(0.8, abs=0.01)
    # a random piece is the same piece once in 45
    assert np.mean(masked[chosen] == 5) == pytest.approx(0.1 + 0.1 / 45, abs=0.01)
    assert np.mean((masked[chosen] != 4) & (masked[chosen] != 5)) == pytest.approx(0.1, abs=0.01)
    drawn = masked[chosen & (masked != 4) & (masked != 5)]
    assert set(drawn) == set(range(6, 50))


def test_every_word_is_as_likely_and_the_parts_are_independent():
    ids = np.tile(np.concatenate([[2], np.arange(5, 15), [3]]), (20000, 1))
    words, seeds = word_numbers(ids, VOCABULARY), np.arange(20000)
    first, second = (mask_words(ids, words, 0.3, VOCABULARY, seeds, part)[1] != IGNORED for part in (0, 1))
    assert first[:, 1:-1].mean(axis=0) == pytest.approx(np.full(10, 0.3), abs=0.015)
    assert (first & second)[:, 1:-1].mean() == pytest.approx(0.09, abs=0.005)
    # neighbouring seeds have nothing to do with each other
    assert (first[1:] & first[:-1])[:, 1:-1].mean() == pytest.approx(0.09, abs=0.005)


def test_a_caption_is_masked_alike_in_any_batch():
    other = np.array([2, 9, 10, 33, 11, 12, 13, 14, 15, 16, 17, 18, 3])
    batch = np.zeros((3, 13), dtype=np.int64)
    batch[0, : len(IDS)], batch[1], batch[2, :2] = IDS, other, [2, 3]
    masked, labels = mask_words(batch, word_numbers(batch, VOCABULARY), 0.5, VOCABULARY, np.array([7, 8, 9]), 1)
    for row, ids, seed in ((0, IDS, 7), (1, other, 8)):
        alone = one(ids, 0.5, seed, 1)
        assert np.array_equal(masked[row, : len(ids)], alone[0]) and np.array_equal(labels[row, : len(ids)], alone[1])
    assert (masked[2] == batch[2]).all() and (labels[2] == IGNORED).all()  # nothing to mask
    empty = np.zeros((0, 2), dtype=np.int64)
    assert mask_words(empty, word_numbers(empty, VOCABULARY), 0.5, VOCABULARY, np.array([]))[0].shape == (0, 2)


def test_words_agree_with_the_tokenizer(tokenizer):
    vocabulary = read_vocabulary(tokenizer)
    encoded = tokenizer("A woman in an overcoat, skateboards near unfinished mountains")
    ids = np.array(encoded["input_ids"])
    theirs = [-1 if word is None else word for word in encoded.word_ids()]
    assert word_numbers(ids[None], vocabulary)[0].tolist() == theirs
    assert max(np.bincount(np.array(theirs)[np.array(theirs) >= 0])) > 1  # some word is in pieces
