"""The official masking: positions among words and padding, against its rule caption by caption."""

import numpy as np
import pytest

from lexlip_data.loading.masking import IGNORED, Vocabulary, mask_positions, mask_words

V, CLS, SEP, PAD, MASK = 50, 0, 1, 2, 3
VOCABULARY = Vocabulary(MASK, np.arange(V) >= 40, np.arange(V) < 4, np.arange(4, V))


def captions(rows, words, pieces=1, length=None):
    """So many captions of words of so many pieces; (ids, words)."""
    length = length or words * pieces + 2
    ids, numbers = np.full((rows, length), PAD), np.full((rows, length), -1)
    ids[:, 0], ids[:, 1 + words * pieces] = CLS, SEP
    ids[:, 1 : 1 + words * pieces] = np.tile([10] + [41] * (pieces - 1), words)
    numbers[:, 1 : 1 + words * pieces] = np.repeat(np.arange(words), pieces)
    return ids, numbers


def counts(ids, words, fraction, length=40):
    masked, labels = mask_positions(ids, words, fraction, VOCABULARY, np.arange(len(ids)), length)
    assert np.array_equal(masked[labels == IGNORED], ids[labels == IGNORED])
    assert np.all(labels[words < 0] == IGNORED)
    return (labels != IGNORED).sum(axis=1)


def test_words_are_hit_as_often_as_padding():
    """12 of 38 positions: of 8 words the number masked is hypergeometric, and often not 30 percent of them."""
    found = counts(*captions(20000, 8), 0.3)
    n, good, drawn = 38, 8, 12
    mean = drawn * good / n
    variance = mean * (1 - good / n) * (n - drawn) / (n - 1)
    assert found.mean() == pytest.approx(mean, abs=0.03) and found.var() == pytest.approx(variance, abs=0.05)
    none = np.prod([(n - drawn - i) / (n - i) for i in range(good)])
    assert (found == 0).mean() == pytest.approx(none, abs=0.005) and none > 0.01
    exact = mask_words(*captions(100, 8), 0.3, VOCABULARY, np.arange(100))[1]
    assert set((exact != IGNORED).sum(axis=1)) == {2}


def test_half_of_the_positions_and_a_full_caption():
    assert set(counts(*captions(50, 38), 0.3)) == {12}
    assert set(counts(*captions(50, 38), 0.5)) == {20}
    assert set(counts(*captions(50, 3), 0.0)) == {0}


def test_a_word_whose_pieces_would_be_too_many_is_passed_over():
    """Words of 5 pieces and no padding: 12 positions hold two of them, whole."""
    ids, words = captions(200, 7, pieces=5, length=37)
    _, labels = mask_positions(ids, words, 0.3, VOCABULARY, np.arange(200), 37)
    at = labels != IGNORED
    assert set(at.sum(axis=1)) == {10}  # 11 are wanted
    for row in range(200):
        assert all(at[row, words[row] == word].all() or not at[row, words[row] == word].any() for word in range(7))


def test_a_caption_is_masked_alike_whatever_else_is_in_its_batch():
    ids, words = captions(4, 6, length=20)
    seeds = np.arange(4)
    whole = mask_positions(ids, words, 0.5, VOCABULARY, seeds, 40, part=1)
    alone = mask_positions(ids[2:3, :8], words[2:3, :8], 0.5, VOCABULARY, seeds[2:3], 40, part=1)
    for many, one in zip(whole, alone, strict=True):
        assert np.array_equal(many[2, :8], one[0])


def test_what_becomes_of_a_masked_piece():
    ids, words = captions(4000, 20)
    masked, labels = mask_positions(ids, words, 0.5, VOCABULARY, np.arange(4000), 40)
    at = labels != IGNORED
    assert (masked[at] == MASK).mean() == pytest.approx(0.8 + 0.1 / V, abs=0.01)
    assert set(masked[at]) == set(range(V))  # replacements come from all of the vocabulary
