"""Ranks from a loop over every query and item."""

import pytest


@pytest.fixture(scope="session")
def brute_ranks():
    """Ranks of each query's best right item, in float64; wrong items that score as much stand before it."""

    def ranks(queries, query_ids, gallery, gallery_ids):
        found = []
        for query, wanted in zip(queries.double(), query_ids, strict=True):
            scores = [(float((query * item).sum()), id) for item, id in zip(gallery.double(), gallery_ids, strict=True)]
            best = max(score for score, id in scores if id == wanted)
            found.append(1 + sum(score > best or (score == best and id != wanted) for score, id in scores))
        return found

    return ranks
