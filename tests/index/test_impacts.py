"""Codebooks: nothing rounded that need not be, the rest to the nearest value, heavy weights more finely."""

import numpy as np
import pytest

from lexlip.index import Index, IndexingError, SparseRows, build, impacts


def weights(number=20_000, seed=0):
    return np.log1p(np.random.default_rng(seed).gamma(2.0, 1.0, number)).astype(np.float16)


@pytest.mark.parametrize("scale", impacts.SCALES)
@pytest.mark.parametrize("bits", [1, 5, 9, 12])
def test_each_weight_counts_as_the_nearest_value(scale, bits):
    some = weights()
    book = impacts.fit(impacts.histogram(some), bits, scale)
    stored = book.values[book.code_of[some.view(np.uint16)]]
    distance = np.abs(np.unique(book.values) - some[:, None].astype(float))
    assert np.allclose(np.abs(stored - some), distance.min(1), atol=0)
    assert len(book.values) == 1 << bits and (np.diff(book.values) >= 0).all()


def test_few_different_weights_are_kept_as_they_are():
    some = np.linspace(0.01, 2, 200).astype(np.float16)
    book = impacts.fit(impacts.histogram(some), 8, "fitted")
    assert np.array_equal(book.values[book.code_of[some.view(np.uint16)]], some.astype(float))


def test_more_bits_round_less():
    some = weights()
    histogram = impacts.histogram(some)
    errors = [impacts.fit(histogram, bits, "fitted").error(histogram) for bits in range(3, 13)]
    # Each bit halves the distance between values, and squared errors are a quarter.
    assert all(after < before / 3 for before, after in zip(errors[:6], errors[1:7]))


def test_fitted_rounds_heavy_weights_less_than_linear():
    some = weights()
    histogram = impacts.histogram(some)
    heavy = some > np.quantile(some, 0.95)
    errors = {}
    for scale in impacts.SCALES:
        book = impacts.fit(histogram, 6, scale)
        errors[scale] = np.abs(book.values[book.code_of[some.view(np.uint16)]] - some)[heavy].mean()
    assert errors["fitted"] < 0.8 * errors["linear"]


@pytest.mark.parametrize("bits, scale", [(0, "fitted"), (13, "fitted"), (8.0, "fitted"), (8, "log")])
def test_other_settings_are_refused(bits, scale, tmp_path):
    with pytest.raises(IndexingError, match="impact_"):
        build(tmp_path / "index", [], impact_bits=bits, impact_scale=scale)


def test_stored_weights_are_those_of_the_codebook(tmp_path):
    """End to end: what explain shows for each posting is the value nearest to the weight that went in."""
    rng = np.random.default_rng(0)
    bags = [dict(zip(rng.choice(50, 6, replace=False).tolist(), weights(6, seed).astype(float))) for seed in range(400)]
    build(tmp_path, [SparseRows.from_bags(bags)], impact_bits=6)
    index = Index.open(tmp_path)
    values = np.unique(index.segments[0].impacts)
    for document, bag in enumerate(bags):
        shares = index.explain({term: 1.0 for term in bag}, document)
        assert {share.term for share in shares} == set(bag)
        for share in shares:
            assert abs(share.document - bag[share.term]) == np.abs(values - bag[share.term]).min()
