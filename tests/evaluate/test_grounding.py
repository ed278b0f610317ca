"""Grounding by hand."""

import numpy as np

from lexlip.evaluate.grounding import content_terms, grounding, terms_of_images
from lexlip.sparse import SparseRows

VOCABULARY = {"[PAD]": 0, "dog": 1, "the": 2, "##s": 3, "beach": 4, ".": 5, "red": 6, "2": 8}


def test_words_that_count():
    assert np.flatnonzero(content_terms(VOCABULARY)).tolist() == [1, 4, 6, 8]


def test_heaviest_terms_that_stand_in_the_captions():
    images = SparseRows.from_bags([
        {1: 0.9, 2: 0.8, 4: 0.1},  # dog, the | beach falls to the cut of two
        {4: 0.5, 6: 0.4},  # beach, red
        {8: 1.0},  # fewer terms than are asked for
        {},
    ])  # fmt: skip
    captions = [np.array([1, 2, 4, 4]), np.array([6, 4, 3]), np.array([1]), np.array([], np.int64)]
    found = grounding(images, captions, content_terms(VOCABULARY), heaviest=2)
    # dog; beach and red; nothing; nothing. By chance each is compared with the image two further on.
    assert found["images"] == 50 and found["terms"] == 3 / 4
    assert found["chance_images"] == 25 and found["chance_terms"] == 1 / 4  # the third image has a dog too


def test_terms_of_the_captions_of_each_image():
    words = SparseRows.from_bags([{4: 1.0, 6: 1.0}, {1: 1.0}, {4: 1.0, 8: 1.0}, {}], ids=np.array([7, 3, 7, 5]))
    assert [row.tolist() for row in terms_of_images(np.array([3, 7, 5]), words)] == [[1], [4, 6, 8], []]
