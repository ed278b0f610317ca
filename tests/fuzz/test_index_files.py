"""The short version of the fuzzers of index files and shards; the long ones are in docs/results/robustness.md."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import index_files
import shard_files

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads Linux's /proc")


def test_hostile_index_files(tmp_path):
    counts, failures = index_files.run(60, 1, tmp_path)
    assert not failures and counts["search", "DamagedIndex"] > 10 and counts["search", "result"] > 0


def test_hostile_shards(tmp_path):
    counts, failures = shard_files.run(60, 1, tmp_path)
    assert not failures and counts["refused"] > 10 and counts["built"] > 0
