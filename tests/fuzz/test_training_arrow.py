"""A short run of the fuzzing of training Arrow files that docs/results/robustness.md reports."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.fuzz.training_arrow import DAMAGES, GOOD, fuzz  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")


def test_no_field_that_says_something_else_ends_in_a_crash():
    counts = fuzz(range(500, 560), seed=1)
    outcomes = sum(counts.values(), Counter())
    assert set(outcomes) <= set(GOOD) and sum(outcomes.values()) == 60
    assert all(counts[kind] for kind in DAMAGES) and min(outcomes[outcome] for outcome in GOOD) > 2
