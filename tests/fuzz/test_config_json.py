"""A short run of the fuzzer of config.json; docs/results/robustness.md has the whole one."""

import sys

import pytest

from tests.fuzz.common import in_process, opening
from tests.fuzz.config_json import FAMILIES, damaged, fuzz

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads Linux's /proc")


@pytest.mark.slow
def test_no_config_ends_in_a_crash(tmp_path):
    results = list(fuzz(range(56), 1, tmp_path))
    bad = [result for result in results if result[2] not in ("opened", "refused")]
    assert not bad, bad[:3]
    assert {result[1] for result in results} == set(FAMILIES)
    assert 3 <= sum(result[2] == "opened" for result in results) <= 40  # or it would test little
    assert damaged(7, 0) == damaged(7, 0) != damaged(7, 1)


def test_what_must_not_be_is_seen(tmp_path):
    """The harness itself: a file written, a connection, and two lines count as crashes."""
    import urllib.request

    def ended(work):
        return in_process(lambda: opening(work, tmp_path, (ValueError,)), 10, 1 << 20)[:2]

    def refuse(text):
        raise ValueError(text)

    assert ended(lambda: None) == ("opened", "")
    assert ended(lambda: refuse("one line")) == ("refused", "one line")
    assert ended(lambda: refuse("two\nlines"))[0] == "crash"
    assert ended(lambda: (tmp_path / "new").write_text("x"))[0] == "crash"
    outcome, message = ended(lambda: urllib.request.urlopen("http://127.0.0.1:9"))
    assert outcome == "crash" and "Network" in message
