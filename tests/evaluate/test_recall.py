"""Recall against a brute-force loop over every query and item, and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lexlip.evaluate import recall
from lexlip.evaluate.recall import SparseVectors


def vectors(rows, vocab=30, seed=0, density=0.3):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, vocab, generator=g) * (torch.rand(rows, vocab, generator=g) < density)


def sparse(dense, ids, order=None):
    order = range(len(dense)) if order is None else order
    return SparseVectors.from_dense(dense, torch.tensor(list(ids)), torch.tensor(list(order)))


@pytest.mark.parametrize("block_numbers", [1, 70, 2**27])
def test_ranks_of_both_directions_are_the_loops(monkeypatch, brute_ranks, block_numbers):
    monkeypatch.setattr(recall, "BLOCK_NUMBERS", block_numbers)
    image_ids = [50, 7, 23, 4, 99, 12]
    text_ids = [7, 7, 7, 50, 23, 23, 4, 99, 99, 99, 99, 12]  # one to four captions each
    # Multiples of 1/4 make sums exact, so that ties are the same in both.
    images, texts = ((vectors(n, seed=n) * 4).round() / 4 for n in (6, 12))
    t2i, i2t = recall.best_ranks(sparse(texts, text_ids), sparse(images, image_ids))
    assert t2i.tolist() == brute_ranks(texts, text_ids, images, image_ids)
    assert i2t.tolist() == brute_ranks(images, image_ids, texts, text_ids)


def test_metrics_by_hand():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0.5, 0.9, 0], [0, 0.2, 0.1], [0, 0.2, 0.3], [0.5, 0, 0.75]])
    metrics = recall.retrieval_metrics(sparse(images, [1, 2, 3]), sparse(texts, [1, 1, 3, 3, 2]))
    # Text to image: 1; 2 (image 2 scores 0.9); 2 (image 2 scores 0.2); 1; 3.
    assert metrics["t2i"] == {"R@1": 40.0, "R@5": 100.0, "R@10": 100.0, "mean_rank": 1.8, "median_rank": 2.0}
    # Image to text: 1; 5 (its caption scores 0, and the captions with 0.9, 0.2, 0.2 and the tie at 0 come first); 2.
    assert metrics["i2t"]["mean_rank"] == pytest.approx((1 + 5 + 2) / 3)
    assert metrics["i2t"]["R@1"] == pytest.approx(33.3333)
    assert (metrics["pictures"], metrics["captions"]) == (3, 5)
    assert metrics["active_terms"] == {"text": 9 / 5, "image": 1.0}
    assert metrics["shared_terms"] == pytest.approx((1 * 3 + 1 * 3 + 1 * 3) / 15)


def test_metrics_need_a_right_item_for_every_query():
    images, texts = sparse(torch.eye(2), [1, 2]), sparse(torch.eye(2), [1, 3], order=[4, 8])
    with pytest.raises(ValueError, match="1 of 2 queries .* position 8"):
        recall.best_ranks(texts, images)
    images, texts = sparse(torch.eye(2), [1, 2], order=[5, 9]), sparse(torch.eye(2), [1, 1])
    with pytest.raises(ValueError, match="1 of 2 queries .* position 9"):
        recall.best_ranks(texts, images)


def test_rsum_is_the_sum_of_six_recalls():
    images, texts = sparse(torch.eye(12), range(12)), sparse(torch.eye(12), range(12))
    assert recall.retrieval_metrics(images, texts)["rsum"] == 600
    backwards = recall.retrieval_metrics(images, sparse(torch.eye(12).flip(0), range(12)))
    # Each wrong image scores 1 or ties with the right one at 0, so every rank is 12.
    assert backwards["t2i"] == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "mean_rank": 12.0, "median_rank": 12.0}
    assert backwards["rsum"] == 0


@pytest.mark.parametrize("value", [0.0, 0.5, float("nan")])
def test_a_model_that_scores_all_the_same_finds_nothing(value):
    """Not-a-number too: a run that diverged must not be picked as the best."""
    same = sparse(torch.full((20, 5), value), range(20))
    metrics = recall.retrieval_metrics(same, same)
    assert metrics["rsum"] == 0
    assert metrics["t2i"]["median_rank"] == 20


def test_ties_among_right_items_do_not_count():
    images = sparse(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [1, 2])
    texts = sparse(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [1, 1, 2])
    assert recall.best_ranks(texts, images)[1].tolist() == [1, 1]


@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("block_numbers", [600, 2**23])
def test_ranks_are_the_dense_computations_on_real_numbers(monkeypatch, block_numbers, density):
    """Random weights of a few words each, and of all; a dense product in float64."""
    monkeypatch.setattr(recall, "BLOCK_NUMBERS", block_numbers)
    monkeypatch.setattr(recall, "DENSE_BLOCK_NUMBERS", block_numbers)
    g = torch.Generator().manual_seed(0)
    image_ids = torch.randperm(60, generator=g)
    text_ids = torch.cat([image_ids, torch.randint(0, 60, (150,), generator=g)])
    images, texts = (F.normalize(vectors(n, 200, seed=n, density=density)) for n in (60, 210))
    scores = texts.double() @ images.double().T
    right = text_ids[:, None] == image_ids[None, :]
    ours = recall.best_ranks(sparse(texts, text_ids), sparse(images, image_ids))
    for dim in (1, 0):  # along the images, along the captions
        best = scores.masked_fill(~right, -1).amax(dim, keepdim=True)
        assert ours[1 - dim].tolist() == (1 + ((scores >= best) & ~right).sum(dim)).tolist()


def test_the_same_image_twice_ties_whatever_the_order_of_the_sum():
    """A thousand words each; the copy stands in another block of the product."""
    dense = vectors(1, 1000, density=1.0) + 0.1
    images = sparse(torch.cat([dense, vectors(40, 1000, seed=1) / 100, dense]), range(42))
    texts = sparse(vectors(42, 1000, seed=2, density=1.0), range(42))
    t2i, _ = recall.best_ranks(texts, images)
    assert t2i[0] == t2i[41] == 2


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_scores_that_float32_cannot_tell_apart_are_told_apart(density):
    """Copies of one image, each better by less than float32 would notice."""
    dense = vectors(1, 400, density=density) + (density == 1.0)
    word = int(dense.argmax())
    images = dense.repeat(30, 1)
    steps = torch.arange(30) * torch.finfo(torch.float32).eps * dense.max()
    images[:, word] += steps
    assert len(images[:, word].unique()) == 30
    texts = dense.repeat(30, 1)
    t2i, i2t = recall.best_ranks(sparse(texts, range(30)), sparse(images, range(30)))
    assert t2i.tolist() == list(range(30, 0, -1))
    assert i2t.tolist() == [30] * 30  # all captions are the same


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["images", "texts"])
def test_one_broken_vector_counts_against_everything_it_meets(value, side):
    """Also where the other side has none of its words."""
    sides = {"images": torch.eye(4), "texts": torch.eye(4)}
    sides[side][2, 2] = value
    t2i, i2t = recall.best_ranks(sparse(sides["texts"], range(4)), sparse(sides["images"], range(4)))
    found = {"images": t2i, "texts": i2t}[side], {"images": i2t, "texts": t2i}[side]
    # Every sound query meets the broken item; the broken one as a query finds nothing.
    assert [ranks.tolist() for ranks in found] == [[2, 2, 4, 2], [1, 1, 4, 1]]


def test_duplicates_are_dropped_by_their_place_and_order_does_not_matter():
    dense, ids = vectors(6), [3, 3, 5, 5, 8, 8]
    whole = sparse(dense, ids)
    pieces = [sparse(dense[rows], [ids[r] for r in rows], rows) for rows in ([4, 1], [0, 4, 5], [2, 3, 1])]
    merged = SparseVectors.concatenate(pieces)
    for field in ("ids", "order", "offsets", "terms", "weights"):
        assert np.array_equal(getattr(merged, field), getattr(whole, field)), field
    assert torch.equal(merged.columns().T, dense)
    assert torch.equal(merged.gathered().between(2, 5).columns().T, dense[2:5])


def test_no_vectors_at_all_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        SparseVectors.concatenate([])


def test_from_dense_keeps_rows_without_a_word():
    dense = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    rows = sparse(dense, [1, 2, 3])
    assert rows.offsets.tolist() == [0, 0, 1, 1]
    assert torch.equal(rows.columns().T, dense)
    assert rows.active_terms == 1 / 3
    assert torch.equal(rows.take(np.array([1, 0])).columns().T, dense[[1, 0]])


def test_cut_rows_hold_the_heaviest_terms():
    dense, order = vectors(5, density=0.8), [9, 2, 3, 7, 5]  # an order that is not the rows'
    cut = sparse(dense, range(5), order).top_k(3)
    wanted = torch.zeros(5, 30)
    for number, row in enumerate(dense):
        for term in row.argsort(descending=True)[:3]:
            wanted[number, term] = row[term]
    assert torch.equal(cut.columns().T, wanted)
    assert cut.order.tolist() == order and cut.ids.tolist() == list(range(5)) and cut.active_terms == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_vector_is_broken_after_a_cut(value):
    dense = vectors(4, density=0.8)
    dense[2, 7] = value
    assert sparse(dense, range(4)).top_k(2).broken().tolist() == [False, False, True, False]


def test_folds_are_averages_over_consecutive_images(brute_ranks):
    images, texts = vectors(6, seed=1), vectors(12, seed=2)
    ids = [10, 11, 12, 13, 14, 15]
    text_ids = [i for i in ids for _ in range(2)]
    folded = recall.folded_metrics(sparse(images, ids), sparse(texts, text_ids), 3)
    recalls = []
    for fold in range(3):
        part, rows = slice(2 * fold, 2 * fold + 2), slice(4 * fold, 4 * fold + 4)
        ranks = brute_ranks(texts[rows], text_ids[rows], images[part], ids[part])
        recalls.append(100 * np.mean(np.array(ranks) <= 1))
    assert folded["t2i"]["R@1"] == pytest.approx(np.mean(recalls), abs=1e-3)
    assert folded["pictures"] == 2
    with pytest.raises(ValueError, match="eval_folds=4 does not divide the 6 images"):
        recall.folded_metrics(sparse(images, ids), sparse(texts, text_ids), 4)


def test_chance_with_two_right_captions_of_four():
    images, texts = sparse(vectors(2, seed=1), [0, 1]), sparse(vectors(4, seed=2), [0, 0, 1, 1])
    found = recall.chance(images, texts)
    assert found["t2i"] == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0}
    assert found["i2t"] == pytest.approx({"R@1": 50.0, "R@5": 100.0, "R@10": 100.0})


def test_evaluate_adds_pruned_folds_and_chance(brute_ranks):
    dense, others = vectors(8, seed=1), vectors(8, seed=3)
    images, texts = sparse(dense, range(8)), sparse(others, range(8))
    metrics = recall.evaluate(images, texts, [1, 4], 2)
    ranks = brute_ranks(others, range(8), dense, range(8))
    assert 1 < np.mean(ranks) < 8  # neither all right nor all wrong
    assert metrics["t2i"] == recall.summary(np.array(ranks))
    assert metrics["i2t"] == recall.summary(np.array(brute_ranks(dense, range(8), others, range(8))))
    assert metrics["chance"]["t2i"] == {"R@1": 12.5, "R@5": 62.5, "R@10": 100.0}
    assert metrics["chance"]["i2t"] == pytest.approx({"R@1": 12.5, "R@5": 62.5, "R@10": 100.0})
    assert set(metrics["pruned"]) == {"1", "4"}
    assert metrics["pruned"]["4"] == recall.retrieval_metrics(images.top_k(4), texts.top_k(4))
    again = [rows.top_k(4).at_length_one() for rows in (images, texts)]
    assert again[0].norms == pytest.approx(np.ones(8))
    normalised = recall.evaluate(images, texts, [4], 0, cut_to_length_one=True)["pruned"]["4"]
    assert normalised == recall.retrieval_metrics(*again)
    assert metrics["folds"] == {"count": 2, **recall.folded_metrics(images, texts, 2)}
    assert set(recall.evaluate(images, texts, [], 0)) == set(metrics) - {"pruned", "folds"}


def test_the_report_says_whether_the_words_are_those_of_the_captions():
    rows = sparse(torch.eye(4), range(4))
    captions, counted = [np.array([0]), np.array([1, 2]), np.array([0]), np.array([], np.int64)], np.ones(4, bool)
    metrics = recall.evaluate(rows, rows, [], 0, (captions, counted))
    assert metrics["grounding"] == {"images": 50.0, "terms": 0.5, "chance_images": 25.0, "chance_terms": 0.25}
    assert recall.words({"coco": metrics, "dense": recall.evaluate(rows, rows, [], 0)}) == (
        "coco: 50.0% of the images have a word of their captions among their 10 heaviest terms (0.50 words), by chance "
        "25.0% (0.25)"
    )


def test_the_table_shows_every_number():
    rows = sparse(torch.eye(12), range(12))
    metrics = recall.retrieval_metrics(rows, rows)
    lines = recall.table({"coco": metrics, "a_long_name": metrics}).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["coco", *["100.00"] * 6, "600.0", "1.0", "1.0"]
    assert len({len(line) for line in lines[1:]}) == 1  # columns line up


def test_the_table_has_a_line_for_each_cut_and_for_the_folds():
    rows = sparse(torch.eye(12), range(12))
    lines = recall.table({"coco": recall.evaluate(rows, rows, [1, 4], 3)}).splitlines()
    assert [line[:24].strip() for line in lines[2:]] == ["coco", "coco, 1 terms", "coco, 4 terms", "coco, 3 folds"]
