"""Searches equal brute force: the same documents, the same scores to the last bit, the same order."""

import numpy as np
import pytest
from PIL import Image

from lexlip.index import Index, IndexingError, SparseRows, add, build, delete, merge
from lexlip.index.layout import MAX_QUERY_TERMS
from lexlip.index.queries import bag_of


def check(index, brute_force, queries, k, **options):
    wanted = brute_force(index)
    for query, hits in zip(queries, index.search_batch(queries, k, **options)):
        assert hits == wanted(query, k)


@pytest.mark.parametrize("documents", [1, 63, 64, 65, 10_000])
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_random_queries(tmp_path, rows, queries, brute_force, documents, k):
    vocabulary = 300
    build(tmp_path, [rows(documents, vocabulary, 16)])
    index = Index.open(tmp_path)
    check(index, brute_force, queries(1000, vocabulary), k)


def test_random_queries_over_many_blocks(tmp_path, rows, queries, brute_force):
    build(tmp_path, [rows(200_000, 3000, 16)])
    check(Index.open(tmp_path), brute_force, queries(1000, 3000), 10)


@pytest.mark.parametrize("bits", [1, 4, 12])
@pytest.mark.parametrize("scale", ["fitted", "linear"])
def test_any_number_of_impact_bits(tmp_path, rows, queries, brute_force, bits, scale):
    build(tmp_path, [rows(20_000, 500, 16)], impact_bits=bits, impact_scale=scale)
    check(Index.open(tmp_path), brute_force, queries(200, 500), 10)


def test_through_adds_deletes_and_merges(tmp_path, rows, queries, brute_force):
    build(tmp_path, [rows(20_000, 400, 16, seed=1)], segment_documents=8000)
    bags = queries(200, 400)
    rng = np.random.default_rng(0)
    for step in range(3):
        # Half of what is added replaces documents that are there.
        add(tmp_path, [rows(6000, 400, 20, seed=2 + step, first_id=20_000 - 3000 + 3000 * step)])
        delete(tmp_path, rng.choice(20_000, 1500, replace=False))
        index = Index.open(tmp_path)
        assert len(index.segments) > 1
        check(index, brute_force, bags, 10)
        check(index, brute_force, bags[:4], 50_000)
    before = len(Index.open(tmp_path))
    merge(tmp_path)
    index = Index.open(tmp_path)
    assert len(index) == before and not any(entry.deleted for entry in index.manifest.segments)
    check(index, brute_force, bags, 10)


def test_equal_scores_go_by_id(tmp_path, brute_force):
    """Hundreds of equal documents in three segments, in an order of rows that is not the order of ids."""
    rng = np.random.default_rng(0)
    names = [f"image {number}" for number in rng.permutation(3000)]
    bag = SparseRows.from_bags([{5: 0.5, 9: 0.25}] * 1000, names[:1000])
    build(tmp_path, [bag], segment_documents=400)
    for begin in (1000, 2000):
        add(tmp_path, [SparseRows.from_bags([{5: 0.5, 9: 0.25}] * 1000, names[begin : begin + 1000])])
    delete(tmp_path, sorted(names)[3:7])
    index = Index.open(tmp_path)
    hits = index.search({5: 1.0, 9: 2.0}, 50)
    assert [hit.id for hit in hits] == (sorted(names)[:3] + sorted(names)[7:])[:50]
    check(index, brute_force, [([5, 9], [1.0, 2.0]), ([9], [1.0])], 100)


def test_scores_that_differ_by_less_than_the_accumulators_can_tell(tmp_path, brute_force):
    """A heavy term that all share leaves the sums no room for a term that is a hundred million times lighter."""
    bags = [{1: 1.0, 2: weight} for weight in np.linspace(0.1, 1.0, 500)]
    build(tmp_path, [SparseRows.from_bags(bags)])
    index = Index.open(tmp_path)
    query = ([1, 2], [1.0, 1e-8])
    hits = index.search(query, 10)
    assert [hit.id for hit in hits] == list(range(499, 489, -1))
    check(index, brute_force, [query], 10)


def test_results_do_not_depend_on_threads_or_company(tmp_path, rows, queries):
    build(tmp_path, [rows(30_000, 300, 16)], segment_documents=9000)
    index = Index.open(tmp_path)
    bags = queries(100, 300)
    alone = [index.search(bag, 10, threads=1) for bag in bags]
    assert index.search_batch(bags, 10, threads=1) == alone
    assert index.search_batch(bags, 10, threads=3) == alone
    assert [index.search(bag, 10, drop=0.3, candidates=50) for bag in bags] == index.search_batch(
        bags, 10, drop=0.3, candidates=50, threads=2
    )


def test_one_query_on_several_threads(tmp_path, rows, queries, monkeypatch):
    build(tmp_path, [rows(30_000, 300, 16)], segment_documents=9000)
    index = Index.open(tmp_path)
    bags = queries(50, 300)
    alone = [index.search(bag, 10, threads=1) for bag in bags]
    monkeypatch.setattr("lexlip.index.index._DOCUMENTS_PER_THREAD", 0)
    assert [index.search(bag, 10, threads=2) for bag in bags] == alone


@pytest.mark.parametrize("options", [{}, {"drop": 0.3, "candidates": 50}])
def test_small_batches_on_several_threads(tmp_path, rows, queries, monkeypatch, options):
    """Shared out by queries and by segments: who is asked to search what differs, the result does not."""
    build(tmp_path, [rows(10_000, 300, 16)], segment_documents=3000)
    index = Index.open(tmp_path)
    bags = queries(70, 300)
    alone = [index.search(bag, 10, threads=1, **options) for bag in bags]
    monkeypatch.setattr("lexlip.index.index._DOCUMENTS_PER_THREAD", 0)
    parts, search = [], Index._search_segments
    monkeypatch.setattr(Index, "_search_segments", lambda self, *part: parts.append(part[0]) or search(self, *part))
    for size in (0, 1, 2, 15, 31, 32, 70):
        for threads in (1, 2, 3, 8):
            parts.clear()
            assert index.search_batch(bags[:size], 10, threads=threads, **options) == alone[:size]
            by_segment = size and threads >= 2 * max(1, min(threads, size // 16))
            assert {len(numbers) for numbers in parts} == {1 if by_segment else 4}


def test_dropped_terms_still_count_for_the_candidates(tmp_path, rows, queries, brute_force):
    """With as many candidates as documents nothing that the terms left reach is lost, and scores are whole."""
    build(tmp_path, [rows(5000, 200, 16)])
    index = Index.open(tmp_path)
    wanted = brute_force(index)
    overlaps = []
    for bag in queries(100, 200):
        best = wanted(bag, 5000)
        score_of = {hit.id: hit.score for hit in best}
        hits = index.search(bag, 10, drop=0.4, candidates=20)
        assert all(hit.score == pytest.approx(score_of[hit.id], abs=1e-12) for hit in hits)
        assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.id))
        overlaps.append(len({hit.id for hit in hits} & {hit.id for hit in best[:10]}) / max(len(best[:10]), 1))
        all_of_them = index.search(bag, 10, drop=0.4, candidates=5000)
        reached = {hit.id for hit in all_of_them} & {hit.id for hit in best[:10]}
        assert len(reached) >= len({hit.id for hit in hits} & {hit.id for hit in best[:10]})
    assert 0.3 < np.mean(overlaps) < 1.0  # it does leave something out, and finds most


def test_empty_queries_and_unknown_terms_find_nothing(tmp_path, rows):
    build(tmp_path, [rows(100, 50, 8)])
    index = Index.open(tmp_path)
    assert index.search({}) == index.search({4_000_000_000: 1.0}) == index.search({3: 0.0}) == []
    assert index.search(([], [])) == index.search(np.zeros(50)) == []
    assert index.search_batch([]) == []


def test_an_index_without_documents(tmp_path):
    build(tmp_path, [])
    index = Index.open(tmp_path)
    assert len(index) == 0 and index.search({1: 1.0}) == [] and index.verify() == []
    add(tmp_path, [SparseRows.from_bags([{1: 1.0}], ["a"])])
    assert Index.open(tmp_path).search({1: 2.0}) == [("a", 2.0)]
    delete(tmp_path, ["a"])
    assert Index.open(tmp_path).search({1: 2.0}) == []


def test_queries_of_every_kind_are_one(tmp_path, rows):
    import torch

    build(tmp_path, [rows(500, 40, 8)])
    index = Index.open(tmp_path)
    dense = np.zeros(40, np.float32)
    dense[[3, 7]] = 0.5, 0.25
    wanted = index.search({3: 0.5, 7: 0.25})
    assert len(wanted) == 10
    for query in (([7, 3], [0.25, 0.5]), ([3, 3, 7], [0.25, 0.25, 0.25]), dense, torch.from_numpy(dense)):
        assert index.search(query) == wanted


@pytest.mark.parametrize(
    "query, message",
    [
        ({3: -1.0}, "term 3 weighs -1.0"),
        ({3: float("nan")}, "term 3 weighs nan"),
        (([1, 2], [1.0]), "as many weights as terms"),
        (([1.5], [1.0]), "terms are whole numbers"),
        ("a dog", "needs a model"),
        ({"dog": 1.0}, "needs a model"),
        (("a", "b"), "as many weights as terms"),
        (np.zeros((2, 3)), "of shape"),
        (None, "not NoneType"),
    ],
)
def test_bad_queries_are_named(tmp_path, rows, query, message):
    build(tmp_path, [rows(5, 40, 8)])
    with pytest.raises(IndexingError, match=message):
        Index.open(tmp_path).search(query)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, "k=0"),
        ({"k": True}, "k=True"),
        ({"k": 2.0}, "k=2.0"),
        ({"drop": 1.0}, "drop=1"),
        ({"candidates": 0}, "candidates=0"),
        ({"candidates": np.True_}, "candidates=True"),
        ({"threads": 1.5}, "threads=1.5"),
    ],
)
def test_bad_numbers_are_named(tmp_path, rows, options, message):
    build(tmp_path, [rows(5, 40, 8)])
    with pytest.raises(IndexingError, match=message):
        Index.open(tmp_path).search({1: 1.0}, **options)


@pytest.mark.parametrize("seed, distinct", [(0, 30_522), (1, 5)])
def test_of_an_encoded_query_the_heaviest_terms_are_kept(tmp_path, rows, seed, distinct):
    """Of equal weights the lower terms; the same vector as a user's own query is refused."""
    import torch

    class Model:
        def encode_text(self, texts):
            return vector[None]

        encode_image = encode_text
        tokenizer = None

    vector = torch.from_numpy(np.random.default_rng(seed).integers(1, distinct + 1, 30_522) / distinct)
    heaviest = sorted(range(30_522), key=lambda term: (-vector[term].item(), term))[:MAX_QUERY_TERMS]
    wanted = {term: float(vector[term].float()) for term in sorted(heaviest)}
    for query in ("a dog", Image.new("RGB", (4, 4))):
        terms, weights = bag_of(query, Model())
        assert dict(zip(terms.tolist(), weights.tolist())) == wanted and terms.tolist() == list(wanted)
    build(tmp_path, [rows(50, 40, 8)])
    assert len(Index.open(tmp_path, Model()).search("a dog", 5)) == 5
    for query in (vector, (np.arange(30_522), vector.numpy()), dict(enumerate(vector.tolist()))):
        with pytest.raises(IndexingError, match="30,522 terms; at most 16,384 are taken"):
            Index.open(tmp_path).search(query)


def test_numbers_of_numpy_are_numbers(tmp_path, rows):
    build(tmp_path, [rows(50, 40, 8)])
    index = Index.open(tmp_path)
    assert index.search({3: 1.0}, np.int64(3), candidates=np.int32(5), threads=np.uint8(1)) == index.search({3: 1.0}, 3)
    assert index.explain({3: 1.0}, np.int64(index.search({3: 1.0})[0].id))


@pytest.mark.parametrize("ids, unknown", [(None, [None, 0.0, "0", [0]]), (list("abc"), [None, 0, b"a", "\udcff"])])
def test_an_id_of_another_kind_is_no_documents(tmp_path, ids, unknown):
    build(tmp_path, [SparseRows.from_bags([{1: 0.5}] * 3, ids)])
    for id in unknown:
        with pytest.raises(IndexingError, match="no document has the id"):
            Index.open(tmp_path).explain({1: 1.0}, id)


def test_explain_adds_up_to_the_score(tmp_path, rows, queries):
    build(tmp_path, [rows(20_000, 30, 12)])  # lists long enough for skips
    index = Index.open(tmp_path)
    for bag in queries(50, 30):
        for hit in index.search(bag, 5):
            shares = index.explain(bag, hit.id)
            assert sum(share.score for share in shares) == pytest.approx(hit.score, rel=1e-12)
            assert [share.score for share in shares] == sorted((share.score for share in shares), reverse=True)
    with pytest.raises(IndexingError, match="no document has the id 20000"):
        index.explain({1: 1.0}, 20_000)
    with pytest.raises(IndexingError, match="no document has the id 'a'"):
        index.explain({1: 1.0}, "a")
