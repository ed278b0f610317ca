"""Fuzzing of the data layer: damaged data sets, each converted, trained on and evaluated in a process of its own.

    python scripts/fuzz.py --inputs 2000 --seed 0
    python scripts/fuzz.py --seed 0 --only 137          # one input again, with its messages

An input is a function of (seed, number). Every use of it ends in one of these ways: "read": all that was wanted is
there; "skipped": some of it is left out, and listed; "refused": one line that names the file, row or image. The other
three must not happen: "crash", "hang" (longer than --time-limit), "memory" (more than --memory-limit). The status is 1
if one did. Takes about half a second per input, and a few for some.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets"), str(ROOT / "scripts")]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not live on in a forked process

import numpy as np  # noqa: E402

from lexlip_data.command import run_command  # noqa: E402

OUTCOMES = ("read", "skipped", "refused", "crash", "hang", "memory")
GOOD = OUTCOMES[:3]


@dataclass
class Result:
    """How one use of one input ended; seconds and peak megabytes of its process, what it was forked with included."""

    number: int
    family: str
    kind: str
    use: str
    outcome: str
    message: str
    seconds: float
    megabytes: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input")
    parser.add_argument("--time-limit", type=float, default=60, help="seconds per use (default: %(default)s)")
    parser.add_argument("--memory-limit", type=float, default=2048, help="MB per use (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every result here")
    options = parser.parse_args()
    numbers = range(options.inputs) if options.only is None else [options.only]
    results = []
    with open(options.json or os.devnull, "w") as file:
        for result in fuzz(numbers, options.seed, options.time_limit, options.memory_limit):
            results.append(result)
            file.write(json.dumps(vars(result)) + "\n")
            file.flush()
            if result.outcome not in GOOD or options.only is not None:
                where = f"input {result.number}, {result.family}, {result.kind}, {result.use}"
                print(
                    f"{where}: {result.outcome}, {result.seconds} s, {result.megabytes} MB\n{result.message}\n",
                    flush=True,
                )
    print(table(results))
    return 0 if all(result.outcome in GOOD for result in results) else 1


def fuzz(numbers: Iterable[int], seed: int, time_limit: float, memory_limit: float) -> Iterator[Result]:
    """All uses of the inputs of these numbers, one after the other."""
    from fuzzing import annotations, arrow_files, images, paths, tables  # noqa: F401  registered by being imported
    from fuzzing.good import KINDS, WORDS
    from fuzzing.uses import USES, use
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from lexlip_data.convert.vocabulary import build_tokenizer

    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        build_tokenizer([" ".join(WORDS)], Path(scratch) / "vocab", 200)
        tokenizer = AutoTokenizer.from_pretrained(Path(scratch) / "vocab")
        for number in tqdm(numbers, disable=None, unit="input"):
            kind = KINDS[number % len(KINDS)]
            folder = Path(scratch) / f"input_{number}"
            folder.mkdir()

            def make(kind=kind, folder=folder, number=number) -> tuple[str, str]:
                kind.damage(folder / "data", np.random.default_rng([seed, number]))
                return "read", ""

            made = in_process(make, 10 * time_limit, 8192)
            if made[0] != "read":
                raise RuntimeError(f"input {number}, {kind.family}, {kind.name} could not be made: {made[1]}")
            for name in USES.get(kind.layout, ("convert",)):
                ended = in_process(
                    lambda name=name, kind=kind, folder=folder: use(
                        name, kind.layout, folder / "data", tokenizer
                    ),
                    time_limit, memory_limit,
                )  # fmt: skip
                yield Result(number, kind.family, kind.name, name, *ended)
            shutil.rmtree(folder)


def in_process(work: Callable[[], tuple[str, str]], time_limit: float, memory_limit: float) -> tuple:
    """(outcome, message, seconds, megabytes) of some work in a forked process, which is killed at the time limit."""
    start = time.monotonic()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, writing, memory_limit)
    os.close(writing)
    with open(reading, "rb") as pipe:
        killed = False
        while (ended := os.wait4(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - start > time_limit:
                killed = True
                os.kill(pid, signal.SIGKILL)
                ended = os.wait4(pid, 0)
                break
            time.sleep(0.002)
        content = pipe.read()
    _, status, usage = ended
    seconds, megabytes = time.monotonic() - start, usage.ru_maxrss / 1024
    if killed:
        outcome, message = "hang", f"killed after {time_limit:g} s"
    elif not content:
        outcome, message = "crash", f"the process ended with status {status}"
    else:
        outcome, message = json.loads(content)
    if outcome != "hang" and (megabytes > memory_limit or "MemoryError" in message):
        outcome, message = "memory", f"{megabytes:.0f} MB; {message}"
    return outcome, message, round(seconds, 3), round(megabytes)


def _child(work: Callable[[], tuple[str, str]], writing: int, memory_limit: float) -> None:
    try:
        # A fuse for the machine, well above the limit, because libraries reserve more than they use.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        fuse = used + int(2 * memory_limit) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (fuse, fuse))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        outcome = work()
    except BaseException:
        outcome = ("crash", traceback.format_exc()[-3000:])
    with open(writing, "w") as pipe:
        json.dump(outcome, pipe)
    os._exit(0)


def table(results: list[Result]) -> str:
    """Counts of outcomes per family, as Markdown."""
    rows: dict[str, Counter] = {}
    for result in results:
        rows.setdefault(result.family, Counter())[result.outcome] += 1
        rows[result.family]["inputs"] = len({r.number for r in results if r.family == result.family})
    total = sum(rows.values(), Counter())
    lines = [f"| damaged | inputs | {' | '.join(OUTCOMES)} |", "| --- " * (len(OUTCOMES) + 2) + "|"]
    for family, counts in [*sorted(rows.items()), ("all", total)]:
        lines.append(f"| {family} | {counts['inputs']} | " + " | ".join(str(counts[name]) for name in OUTCOMES) + " |")
    peak = max(results, key=lambda result: result.megabytes)
    longest = max(results, key=lambda result: result.seconds)
    lines.append("")
    lines.append(
        f"peak {peak.megabytes:,} MB ({peak.kind}, {peak.use}), longest {longest.seconds:.1f} s ({longest.kind})"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
