"""A short run of the fuzzing that docs/RESULTS.md reports: nothing crashes, hangs or takes too much memory."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads Linux's /proc")
def test_no_damage_ends_in_a_crash(tmp_path):
    command = [sys.executable, str(SCRIPT), "--inputs", "200", "--seed", "1", "--json", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    results = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert len({result["number"] for result in results}) == 200
    outcomes = Counter(result["outcome"] for result in results)
    assert set(outcomes) == {"read", "skipped", "refused"}
    assert min(outcomes.values()) > 50  # damage that nothing notices, or that nothing survives, would test little
    families = {result["family"] for result in results}
    assert len(families) >= 15 and f"| all | 200 | {outcomes['read']} | {outcomes['skipped']} |" in done.stdout


def test_an_outcome_that_must_not_be_is_told(tmp_path):
    """The harness itself: a crash, a hang and a large process are seen for what they are."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from fuzz import in_process
    finally:
        sys.path.remove(str(SCRIPT.parent))

    def loop():
        while True:
            pass

    def fill():
        data = bytearray(300 << 20)
        data[::4096] = b"x" * len(data[::4096])
        return "read", ""

    assert in_process(lambda: ("read", ""), 10, 8192)[0] == "read"
    assert in_process(lambda: 1 / 0, 10, 8192)[:1] == ("crash",)
    assert "ZeroDivisionError" in in_process(lambda: 1 / 0, 10, 8192)[1]
    assert in_process(lambda: __import__("os")._exit(3), 10, 8192)[0] == "crash"
    assert in_process(loop, 0.5, 8192)[0] == "hang"
    assert in_process(fill, 10, 200)[0] == "memory"
